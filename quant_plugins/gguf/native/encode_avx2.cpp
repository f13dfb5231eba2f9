#define ENCODE encode_avx2
#include "encode.inl"
