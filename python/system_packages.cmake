# Says in one line which system packages a build of the Python package misses: pip shows whole logs.
set(headers
  dnnl.hpp libdnnl-dev
  CL/cl.h ocl-icd-opencl-dev
  cblas.h libopenblas-openmp-dev
  fmt/core.h libfmt-dev
  nlohmann/json.hpp nlohmann-json3-dev
  CLI/CLI.hpp libcli11-dev
  archive.h libarchive-dev
  zlib.h zlib1g-dev
  jpeglib.h libjpeg-dev
  png.h libpng-dev
  stb/stb_image.h libstb-dev
  xxhash.h libxxhash-dev
  curl/curl.h libcurl4-openssl-dev
  openssl/evp.h libssl-dev)
set(missing "")
while(headers)
  list(POP_FRONT headers header package)
  find_path(NIBBLENET_HEADER ${header} PATH_SUFFIXES openblas NO_CACHE)
  if(NOT NIBBLENET_HEADER)
    list(APPEND missing ${package})
  endif()
  unset(NIBBLENET_HEADER)
endwhile()
if(missing)
  list(JOIN missing " " missing)
  message(FATAL_ERROR "nibblenet: these system packages are missing: ${missing} (Debian, Ubuntu: apt-get install ${missing})")
endif()
