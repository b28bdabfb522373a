#pragma once

#include <cstdint>
#include <vector>

#include "engine/io/json.h"
#include "tools/study/document.h"

namespace nibblenet::tools {

/// Which bytes a front compares: on the device while the network runs, or in the smallest file that
/// was measured.
enum class Place : uint8_t { resident, file };
int64_t stored_bytes(const Row& row, Place place);

/// The packed rows that no other row beats in both accuracy and bytes, smallest first.
std::vector<const Row*> pareto_front(const std::vector<Row>& rows, Place place);

/// Accuracy and bytes of every packed row, with the fronts marked; nothing where no row has a
/// compressed file.
Section frontier_section(const std::vector<Row>& rows, const nlohmann::json& setup);

}  // namespace nibblenet::tools
