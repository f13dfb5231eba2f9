#define ENCODE encode_portable
#include "encode.inl"
