#include "layers/network/network_spec.h"

namespace nibblenet {

NetworkSpec alexnet();  // alexnet.cpp

const std::vector<NetworkSpec>& networks() {
  static const std::vector<NetworkSpec> all = {alexnet()};
  return all;
}

}  // namespace nibblenet
