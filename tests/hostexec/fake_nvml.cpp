// Stands in for NVML: a GPU that uses a joule whenever it is asked.

#include <cstring>

extern "C" {

int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** device) {
  static int gpu = 0;
  *device = &gpu;
  return std::strcmp(bus, "0000:00:00.0") == 0 ? 0 : 2;
}
int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* millijoules) {
  static unsigned long long used = 0;
  *millijoules = used += 1000;
  return 0;
}

}  // extern "C"
