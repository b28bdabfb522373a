#include "layers/network/network_spec.h"

namespace nibblenet {

NetworkSpec alexnet();  // alexnet.cpp
NetworkSpec vgg16();    // vgg16.cpp

const std::vector<NetworkSpec>& networks() {
  static const std::vector<NetworkSpec> all = {alexnet(), vgg16()};
  return all;
}

}  // namespace nibblenet
