# Seeded bugs of the engine, each of which the simulation must catch (mutation_check.cc). They live
# here and in a test-only build of the engine: mutate() makes a copy of a source in which, while
# pergola::g_mutation is the bug's number, the code does the wrong thing. A bug whose place in the
# source is not found exactly once ends the configuration, so the list cannot rot.
set(mutated_dir ${CMAKE_CURRENT_BINARY_DIR}/mutated)
set(engine_dir ${CMAKE_SOURCE_DIR}/coordinator/engine)
set(mutation_names "")
set(mutated_files "")

# Bug NUMBER ("what it does") begins; NUMBER 1, 2, 3, ...
macro(bug number what)
  set(bug ${number})
  string(APPEND mutation_names "{${number}, \"${what}\"},\n")
endmacro()

# Replaces FROM by TO in FILE, where BUG stands for "the bug is on".
macro(mutate file from to)
  if(NOT "${file}" IN_LIST mutated_files)
    list(APPEND mutated_files ${file})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${engine_dir}/${file})
    file(READ ${engine_dir}/${file} text_${file})
    set(text_${file} "namespace pergola { extern int g_mutation; }\n${text_${file}}")
  endif()
  string(FIND "${text_${file}}" "${from}" first)
  string(FIND "${text_${file}}" "${from}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "bug ${bug}: not exactly one place in ${file} is: ${from}")
  endif()
  string(REPLACE "BUG" "(::pergola::g_mutation == ${bug})" replacement "${to}")
  string(REPLACE "${from}" "${replacement}" text_${file} "${text_${file}}")
endmacro()

bug(1 "a block may be shared by the plan that writes it")
mutate(scheduler.cc "  building.rows_left -= rows;"
       "  building.rows_left -= rows; if (BUG) PublishBlocks(sequence);")
bug(2 "a sibling starts in the plan that completes the prompt")
mutate(scheduler_slots.cc "if (leader.prompt_plan == next_plan_ ||"
       "if ((!BUG && leader.prompt_plan == next_plan_) ||")
mutate(engine_placement.cc "leader.prompt_plan == leader.scheduler->next_plan()"
       "(!BUG && leader.prompt_plan == leader.scheduler->next_plan())")
bug(3 "a sibling's last block is not copied")
mutate(scheduler_slots.cc "if (start.copied) {" "if (start.copied && !BUG) {")
bug(4 "a sibling shares the block that both write")
mutate(scheduler_slots.cc "leader.blocks.begin() + full);" "leader.blocks.begin() + full + BUG);")
mutate(scheduler_slots.cc "if (computed % limits_.block_tokens != 0)"
       "if (!BUG && computed % limits_.block_tokens != 0)")
bug(5 "an evicted block stays in the index")
mutate(prefix_index.cc "  blocks_.erase(keys_[block]);" "  if (!BUG) blocks_.erase(keys_[block]);")
bug(6 "a key does not tell what came before the block")
mutate(prefix_index.cc "memcpy(bytes, &before, sizeof before);"
       "memset(bytes, 0, sizeof before); if (!BUG) std::memcpy(bytes, &before, sizeof before);")
bug(7 "a cached prefix covers all that is known")
mutate(scheduler_slots.cc "const auto most = static_cast<uint32_t>(sequence.known.size() - 1);"
       "const auto most = static_cast<uint32_t>(sequence.known.size() - (BUG ? 0 : 1));")
bug(8 "sharing a block does not count")
mutate(block_pool.cc "  ++references_[block];" "  if (!BUG) ++references_[block];")
bug(9 "a sequence that leaves its slot keeps its computed positions")
mutate(scheduler_slots.cc "sequence.computed = sequence.planned = sequence.pending = 0;"
       "if (!BUG) { sequence.computed = sequence.planned = 0; }\n  sequence.pending = 0;")
mutate(scheduler_slots.cc "sequence.computed = sequence.planned = start.computed;"
       "sequence.computed = sequence.planned = (BUG ? sequence.computed : start.computed);")
bug(10 "results are matched by slot alone")
mutate(scheduler.cc "sequence->run == entry.run" "(BUG || sequence->run == entry.run)")
bug(11 "a block is published before its last positions are written")
mutate(scheduler_slots.cc "std::min<uint64_t>(sequence.planned, sequence.known.size())"
       "std::min<uint64_t>(sequence.planned + (BUG ? 8 : 0), sequence.known.size())")
bug(12 "a decode is planned beyond the last token")
mutate(scheduler.cc "length < sequence.max_known" "(BUG || length < sequence.max_known)")
bug(13 "decodes do not wait for a slow reader")
mutate(scheduler.cc "bool Scheduler::Decodes(const Sequence& sequence) const {\n  if (sequence.paused)"
       "bool Scheduler::Decodes(const Sequence& sequence) const {\n  if (sequence.paused && !BUG)")
bug(14 "a reader may be slow for ever")
mutate(engine_readers.cc "paused_us >= options_.slow_reader_timeout_us"
       "!BUG && paused_us >= options_.slow_reader_timeout_us")
bug(15 "a pause never ends")
mutate(engine_readers.cc "if (!sequence.request.mailbox->full())"
       "if (!BUG && !sequence.request.mailbox->full())")
bug(16 "results of an old epoch are taken")
mutate(engine_groups.cc "|| result.epoch() != group->epoch" "|| (!BUG && result.epoch() != group->epoch)")
bug(17 "a suspect does not run alone")
mutate(engine_placement.cc "if (!running.empty() && running.front()->suspect) return nullptr;"
       "if (!BUG && !running.empty() && running.front()->suspect) return nullptr;")
bug(18 "an answer counts for whatever plan is oldest")
mutate(scheduler_results.cc "result.plan_id() != oldest_plan_" "(!BUG && result.plan_id() != oldest_plan_)")
bug(19 "log-probabilities of the prompt are told again after a replay")
mutate(scheduler_results.cc "first_target = sequence->scored - planned.first_position;"
       "first_target = BUG ? 0 : sequence->scored - planned.first_position;")
bug(20 "a scored prompt takes prefix hits")
mutate(scheduler_slots.cc "if (sequence.scores()) return start;"
       "if (sequence.scores() && !BUG) return start;")
bug(21 "penalties do not see the ids of a shared prefix")
mutate(scheduler.cc "if (sequence.planned > 0 && LooksBack" "if (!BUG && sequence.planned > 0 && LooksBack")
bug(22 "a replayed sequence's new ids count as its prompt")
mutate(scheduler.cc "start.set_prompt_tokens(sequence.prompt_count);"
       "start.set_prompt_tokens(BUG ? static_cast<uint32_t>(sequence.known.size()) : sequence.prompt_count);")
bug(23 "siblings draw alike")
mutate(scheduler.cc "start.set_index(sequence.request.index);"
       "start.set_index(BUG ? 0 : sequence.request.index);")
bug(24 "a sibling does not wait for the prompt")
mutate(scheduler_slots.cc "leader.planned < leader.prompt_count) return;"
       "(!BUG && leader.planned < leader.prompt_count)) return;")
mutate(engine_placement.cc "return leader.planned < leader.prompt_count ||"
       "return (!BUG && leader.planned < leader.prompt_count) ||")
bug(25 "a shared block can be evicted")
mutate(block_pool.cc "if (references_[block] == 0) index_.Busy(block);"
       "if (!BUG && references_[block] == 0) index_.Busy(block);")
bug(26 "admission counts cached blocks twice")
mutate(scheduler_slots.cc "uint64_t{revived} + own" "(BUG ? 0 : uint64_t{revived}) + own")
bug(27 "the first message is sent again after a replay")
mutate(engine_placement.cc "if (sequence.info_sent) return;" "if (sequence.info_sent && !BUG) return;")
bug(28 "a paused sequence's end is forgotten")
mutate(engine_core.cc "  paused_.erase(sequence.id);" "  if (!BUG) paused_.erase(sequence.id);")
bug(29 "bytes of the queue are not given back")
mutate(waiting_queue.cc "  bytes_ -= BytesOf(sequence);" "  if (!BUG) bytes_ -= BytesOf(sequence);")
bug(30 "a decode gets its block one position late")
mutate(scheduler.cc "BlocksFor(sequence.planned + 1)" "BlocksFor(sequence.planned + (BUG ? 0 : 1))")
bug(31 "deadlines do not end what runs")
mutate(engine_core.cc "deadlines_.begin()->first <= now" "!BUG && deadlines_.begin()->first <= now")
bug(32 "text that a resuming client has is sent again")
mutate(engine_core.cc "sequence.text_skip = sequence.request.received_text_bytes;"
       "sequence.text_skip = BUG ? 0 : sequence.request.received_text_bytes;")
bug(33 "a lost group's plans stay computed")
mutate(engine_groups.cc "    group.scheduler->Release(sequence);\n    ++replays_;"
       "    const uint32_t scored = sequence.scored; group.scheduler->Release(sequence);\n    sequence.scored = scored + (BUG ? 1 : 0); ++replays_;")

set(mutated_sources "")
file(GLOB engine_sources RELATIVE ${engine_dir} ${engine_dir}/*.cc)
foreach(file ${engine_sources})
  if("${file}" IN_LIST mutated_files)
    file(CONFIGURE OUTPUT ${mutated_dir}/${file} CONTENT "${text_${file}}" @ONLY)
    list(APPEND mutated_sources ${mutated_dir}/${file})
  else()
    list(APPEND mutated_sources ${engine_dir}/${file})
  endif()
endforeach()
file(CONFIGURE OUTPUT ${mutated_dir}/mutation_names.inc CONTENT "${mutation_names}" @ONLY)

add_executable(sim_mutations sim/mutation_check.cc ${mutated_sources})
target_include_directories(sim_mutations PRIVATE ${mutated_dir})
target_link_libraries(sim_mutations PRIVATE pergola_base pergola_proto pergola_flags GTest::gtest_main)
gtest_discover_tests(sim_mutations TEST_PREFIX "sim." DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
