// What compiled_code.sh takes apart: kernels that unpack one chunk of codes and four, and do
// nothing else.

#include "kernels/cuda/weights/string_fragments.cuh"
#include "kernels/cuda/weights/unpack.cuh"

namespace nibblenet {

/// a[chunk] = the weights of that chunk, every thread its own.
template <class Codes, int chunks>
__global__ void unpack_kernel(uint4 (*a)[chunks][4], const uint32_t (*words)[chunks][Codes::bits], CodeValues values) {
  const Codes codes{};
  auto& table = shared<typename Codes::Table>();
  codes.prepare(table, values, nullptr, 1.0F);
  __syncthreads();
#pragma unroll
  for (int chunk = 0; chunk < chunks; ++chunk) {
    uint32_t own[Codes::bits];
#pragma unroll
    for (int i = 0; i < Codes::bits; ++i) own[i] = words[threadIdx.x][chunk][i];
    uint32_t fragments[4][4];
    codes.decode(own, table, fragments);
#pragma unroll
    for (int f = 0; f < 4; ++f)
      a[threadIdx.x][chunk][f] = {fragments[f][0], fragments[f][1], fragments[f][2], fragments[f][3]};
  }
}

#define NIBBLENET_PROBE(Codes)                                                                                     \
  template __global__ void unpack_kernel<Codes, 1>(uint4(*)[1][4], const uint32_t(*)[1][Codes::bits], CodeValues); \
  template __global__ void unpack_kernel<Codes, 4>(uint4(*)[4][4], const uint32_t(*)[4][Codes::bits], CodeValues);
NIBBLENET_PROBE(IntegerCodes<2>)
NIBBLENET_PROBE(IntegerCodes<3>)
NIBBLENET_PROBE(IntegerCodes<4>)
NIBBLENET_PROBE(IntegerCodes<5>)
NIBBLENET_PROBE(IntegerCodes<6>)
NIBBLENET_PROBE(IntegerCodes<7>)
NIBBLENET_PROBE(IntegerCodes<8>)
NIBBLENET_PROBE(CodebookCodes<2>)
NIBBLENET_PROBE(CodebookCodes<3>)
NIBBLENET_PROBE(CodebookCodes<4>)
NIBBLENET_PROBE(CodebookCodes<5>)
NIBBLENET_PROBE(CodebookCodes<6>)
NIBBLENET_PROBE(CodebookCodes<7>)
NIBBLENET_PROBE(CodebookCodes<8>)

/// a[chunk] = the weights of that chunk of a string tile.
template <int quarters, int chunks>
__global__ void unpack_strings_kernel(uint4 (*a)[chunks][4], const unsigned char* tile) {
  const StringFragments<quarters> fragments;
#pragma unroll
  for (int chunk = 0; chunk < chunks; ++chunk) {
    uint32_t own[4][4];
    fragments.unpack(tile, chunk, own);
#pragma unroll
    for (int f = 0; f < 4; ++f) a[threadIdx.x][chunk][f] = {own[f][0], own[f][1], own[f][2], own[f][3]};
  }
}

#define NIBBLENET_STRING_PROBE(quarters)                                                             \
  template __global__ void unpack_strings_kernel<quarters, 1>(uint4(*)[1][4], const unsigned char*); \
  template __global__ void unpack_strings_kernel<quarters, 4>(uint4(*)[4][4], const unsigned char*);
NIBBLENET_STRING_PROBE(2)
NIBBLENET_STRING_PROBE(3)
NIBBLENET_STRING_PROBE(4)
NIBBLENET_STRING_PROBE(5)
NIBBLENET_STRING_PROBE(6)
NIBBLENET_STRING_PROBE(8)
NIBBLENET_STRING_PROBE(12)
NIBBLENET_STRING_PROBE(16)

}  // namespace nibblenet
