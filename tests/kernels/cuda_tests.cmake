# gpu_probe, all that runs on a GPU, as one program, so that kernels are packed once: the kernel
# tests and the executor's tests once more, with the CUDA device in the emulator's place (they skip where
# there is no GPU), and its own commands.
file(GLOB kernel_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/*_test.cc)
list(FILTER kernel_tests EXCLUDE REGEX "/emulator_(faults_)?test\\.cc$")
file(GLOB worker_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/worker/*_test.cc)
list(FILTER worker_tests INCLUDE REGEX "/(layout_golden|step_graphs|memory_plan)_test\\.cc$")
file(GLOB test_kernels CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/cuda/*.cu)
list(FILTER test_kernels EXCLUDE REGEX "/emulator_kernels\\.cu$")
add_executable(gpu_probe ${probe_sources} ${kernel_tests} ${worker_tests} ${test_kernels}
               kernels/cuda/emulator_absent.cc)
target_link_libraries(gpu_probe PRIVATE pergola_executor pergola_cuda CUDA::cudart_static GTest::gmock)
set_target_properties(gpu_probe PROPERTIES CUDA_RUNTIME_LIBRARY Static)
target_compile_definitions(gpu_probe PRIVATE PERGOLA_BIN_DIR="${CMAKE_BINARY_DIR}/bin")
if(PERGOLA_PORTABLE)
  # The tests' data lie below the working directory; what has no static archive, beside the program.
  target_compile_definitions(gpu_probe PRIVATE PERGOLA_TEST_DATA="tests")
  set_target_properties(gpu_probe PROPERTIES BUILD_RPATH "$ORIGIN/lib")
else()
  target_compile_definitions(gpu_probe PRIVATE PERGOLA_TEST_DATA="${CMAKE_CURRENT_SOURCE_DIR}")
  # The CPU's cases are the plain suite's.
  gtest_discover_tests(gpu_probe TEST_PREFIX "cuda." TEST_FILTER "*Cuda*:*cuda_*:*Cublas*:GpuMemory*:Recorded*"
                       DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300 LABELS cuda)
endif()

add_executable(peer_reduce_bench bench/peer_reduce_bench.cc)
target_link_libraries(peer_reduce_bench PRIVATE pergola_cuda)
set_target_properties(peer_reduce_bench PROPERTIES CUDA_RUNTIME_LIBRARY Static)
add_test(NAME bench.peer_reduce COMMAND peer_reduce_bench --tiny)
