#pragma once

#include <string>
#include <vector>

#include "tools/study/row.h"

namespace nibblenet::tools {

/// A plot as gnuplot's commands, data included.
struct Plot {
  std::string name;     ///< of its files, and in the document
  std::string caption;  ///< what is to be seen
  int width = 0;        ///< pixels of the SVG
  int height = 0;
  std::string commands;  ///< between "set output" and the end
};

/// accuracy_bits, accuracy_size (resident), bytes_bits and error_bits, and for rows with compressed
/// files accuracy_file, loss_resident and loss_file; each where rows have figures for it.
std::vector<Plot> make_plots(const std::vector<Row>& rows);

}  // namespace nibblenet::tools
