// Stands in for NVML: a GPU that uses a joule whenever it is asked, at 42 °C. It does not tell its
// power.

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

int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  std::strncpy(text, "570.1", length);
  return 0;
}
int nvmlDeviceGetClockInfo(void*, int kind, unsigned* megahertz) {
  *megahertz = kind == 1 ? 1980 : kind == 2 ? 3201 : 0;
  return 0;
}
int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) {
  *celsius = 42;
  return 0;
}
int nvmlDeviceGetPowerUsage(void*, unsigned*) { return 3; }

}  // extern "C"
