#pragma once

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/tools/run.h"

namespace nibblenet::testing {

/// Tools under mpirun.
class RankJobs : public ToolsTest {
 protected:
  void SetUp() override {
    std::istringstream folders(std::getenv("PATH") != nullptr ? std::getenv("PATH") : "");
    bool found = false;
    for (std::string folder; std::getline(folders, folder, ':');)
      found = found || access((folder + "/mpirun").c_str(), X_OK) == 0;
    if (!found) GTEST_SKIP() << "there is no mpirun: install openmpi-bin";
    ToolsTest::SetUp();
    if (!std::filesystem::exists(module())) GTEST_SKIP() << "this build has no MPI";
    for (const char* variable :
         {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "PRTE_ALLOW_RUN_AS_ROOT=1",
          "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1", "OMPI_MCA_rmaps_base_oversubscribe=1",
          "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe", "OMPI_MCA_hwloc_base_binding_policy=none",
          "PRTE_MCA_hwloc_default_binding_policy=none", "OMPI_MCA_btl_vader_single_copy_mechanism=none",
          "OMPI_MCA_smsc=^cma"})
      environment_.emplace_back(variable);
  }

  /// The module that links MPI.
  virtual std::string module() const { return tools_ + "/libnibblenet_mpi.so"; }

  /// "-n N, the built tool and its arguments", for every part; parts of one job.
  std::vector<std::string> job(const std::vector<std::pair<int, std::string>>& parts) const {
    std::vector<std::string> words = {"/usr/bin/env", "mpirun"};  // by its path, Open MPI takes that for a prefix
    for (const auto& [ranks, line] : parts) {
      if (words.size() > 2) words.emplace_back(":");
      words.insert(words.end(), {"-n", std::to_string(ranks)});
      const std::vector<std::string> own = command(line);
      words.insert(words.end(), own.begin(), own.end());
    }
    return words;
  }
  Outcome run_job(const std::vector<std::pair<int, std::string>>& parts) const {
    return Child(job(parts), at(""), environment_, at(".job").string()).wait();
  }
  /// Expects that a job ends with one line of the tool's that holds `mention`.
  void refuse_job(const std::vector<std::pair<int, std::string>>& parts, const std::string& mention) const {
    const Outcome outcome = run_job(parts);
    EXPECT_NE(outcome.code, 0) << outcome;
    EXPECT_EQ(lines_of_tool(outcome), 1) << outcome;
    EXPECT_NE(outcome.err.find(mention), std::string::npos) << "expected a mention of " << mention << "; " << outcome;
  }
  static int64_t lines_of_tool(const Outcome& outcome) {
    int64_t lines = 0;
    for (size_t found = 0; (found = outcome.err.find(": error:", found)) != std::string::npos; ++found) ++lines;
    return lines;
  }
  /// Everything in a checkpoint but how long it took, which its header's checksum counts, too.
  std::map<std::string, std::string> checkpoint(const std::string& name) const {
    StateDict dict = model(name);
    std::map<std::string, std::string> contents;
    dict.metadata.erase("header_xxh3");
    for (const auto& [key, value] : dict.metadata)
      contents[key] = std::regex_replace(value, std::regex("\"(seconds|images_per_second)\":[^,}]*"), "");
    for (const Parameter& parameter : dict.parameters) {
      const Tensor<float> dequantized = parameter.dequantized();
      const auto values = dequantized.view().span();
      contents[parameter.name].assign(reinterpret_cast<const char*>(values.data()), values.size_bytes());
    }
    return contents;
  }

  /// The processes of a job's ranks, once they run.
  static std::vector<pid_t> processes_of(Child& child, size_t ranks, const std::string& tool = "finetune") {
    std::vector<pid_t> processes;
    while (child.running() && processes.size() < ranks) {
      processes.clear();
      for (const std::filesystem::directory_entry& entry : std::filesystem::directory_iterator("/proc")) {
        std::ifstream stat(entry.path() / "stat");
        std::string id, name, state, parent;
        if (stat >> id >> name >> state >> parent && name == "(" + tool + ")" && parent == std::to_string(child.id()))
          processes.push_back(std::stoi(id));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return processes;
  }
};

}  // namespace nibblenet::testing
