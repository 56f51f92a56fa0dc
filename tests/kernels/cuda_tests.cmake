# The kernel tests once more, with the CUDA device in the emulator's place: they run on a GPU, and skip
# where there is none. One program, so that it can be taken to a machine with a GPU.
file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/*_test.cc)
list(FILTER sources EXCLUDE REGEX "/emulator_(faults_)?test\\.cc$")
add_executable(cuda_kernels_tests ${sources} kernels/cuda/device_kernels.cu
               kernels/cuda/emulator_absent.cc)
target_link_libraries(cuda_kernels_tests PRIVATE pergola_cuda CUDA::cudart_static GTest::gmock
                      GTest::gtest_main)
set_target_properties(cuda_kernels_tests PROPERTIES CUDA_RUNTIME_LIBRARY Static)
target_compile_definitions(cuda_kernels_tests PRIVATE
                           PERGOLA_TEST_DATA="${CMAKE_CURRENT_SOURCE_DIR}"
                           PERGOLA_BIN_DIR="${CMAKE_BINARY_DIR}/bin")
gtest_discover_tests(cuda_kernels_tests TEST_PREFIX "cuda_kernels." DISCOVERY_TIMEOUT 60
                     PROPERTIES TIMEOUT 300)

add_executable(cuda_attention_bench bench/cuda_attention_bench.cc)
target_link_libraries(cuda_attention_bench PRIVATE pergola_cuda)
set_target_properties(cuda_attention_bench PROPERTIES CUDA_RUNTIME_LIBRARY Static)
add_test(NAME bench.cuda_attention COMMAND cuda_attention_bench --tiny)

add_executable(peer_reduce_bench bench/peer_reduce_bench.cc)
target_link_libraries(peer_reduce_bench PRIVATE pergola_cuda)
set_target_properties(peer_reduce_bench PROPERTIES CUDA_RUNTIME_LIBRARY Static)
add_test(NAME bench.peer_reduce COMMAND peer_reduce_bench --tiny)
