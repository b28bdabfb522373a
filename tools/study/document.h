#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "tools/study/row.h"

namespace nibblenet::tools {

/// A table of a report, as text: Markdown and HTML show the same.
struct Table {
  std::string caption;
  std::vector<std::string> columns;
  size_t left_columns = 1;  ///< so many are text, the others are numbers
  std::vector<std::vector<std::string>> rows;
};

/// A section of the report.
struct Section {
  std::string heading;
  std::vector<std::string> paragraphs;
  std::vector<std::string> plots;  ///< their names, shown between paragraphs and tables
  std::vector<Table> tables;
};

/// Everything a report says, as a function of the rows and the setup alone: a sweep that was
/// killed and continued says the same. Times differ from run to run and stand in the last
/// section.
struct Document {
  std::string title;
  std::vector<Section> sections;
};

/// `rows`: the float model first. `setup`: sweep.json's.
Document make_document(const std::vector<Row>& rows, const nlohmann::json& setup);

/// Adds columns to a table of rows, and to its last row the cells, for the figures on validation
/// images; nothing where the rows have none.
void add_validation_columns(Table& table, const std::vector<Row>& rows);
void add_validation_cells(Table& table, const Row& row);

/// The first row of that scheme; null when there is none.
const Row* find_row(const std::vector<Row>& rows, const std::string& scheme);

}  // namespace nibblenet::tools
