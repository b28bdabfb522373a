#pragma once

#include "engine/io/json.h"
#include "training/trainer.h"

namespace nibblenet {

/// An epoch as checkpoints and reports have it. It has validation_loss and validation_accuracy in
/// place of test_loss and test_accuracy where the run validates.
inline void to_json(nlohmann::json& json, const EpochReport& report) {
  json = {{"epoch", report.epoch},
          {"loss", report.loss},
          {"train_accuracy", report.train_accuracy},
          {"seconds", report.seconds},
          {"images_per_second", report.images_per_second},
          {"sparsity", report.sparsity}};
  json[report.validation ? "validation_loss" : "test_loss"] = report.measured().loss;
  json[report.validation ? "validation_accuracy" : "test_accuracy"] = report.measured().accuracy;
}

/// Throws a json::exception for a document of another form.
inline void from_json(const nlohmann::json& json, EpochReport& report) {
  json.at("epoch").get_to(report.epoch);
  json.at("loss").get_to(report.loss);
  json.at("train_accuracy").get_to(report.train_accuracy);
  json.at("seconds").get_to(report.seconds);
  json.at("images_per_second").get_to(report.images_per_second);
  json.at("sparsity").get_to(report.sparsity);
  if (json.contains("validation_loss")) {
    report.validation = {.loss = json.at("validation_loss").get<double>(),
                         .accuracy = json.at("validation_accuracy").get<double>()};
    return;
  }
  json.at("test_loss").get_to(report.test_loss);
  json.at("test_accuracy").get_to(report.test_accuracy);
}

}  // namespace nibblenet
