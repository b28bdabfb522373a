#include "tools/library/nibblenet.h"

#include <gmock/gmock.h>
#include <omp.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>
#include <optional>
#include <thread>
#include <typeinfo>

#include "engine/io/preprocess.h"
#include "engine/quant/quantizer.h"
#include "layers/network/evaluate.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"

/// The library as other programs use it: through its header alone. What it should give comes from
/// the parts that it is made of.
namespace nibblenet::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int size = 64;
constexpr int64_t height = 40, width = 48;

/// RGB bytes [images, height, width, 3].
Bytes noise(int64_t images, uint64_t seed = 1) {
  Random random(seed, 0);
  Bytes bytes(static_cast<size_t>(images * height * width * 3));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.below(256));
  return bytes;
}

/// A folder with a packed AlexNet of small sizes, and ten images of each class of the stand-in.
class LibraryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    StateDict dict = small_alexnet(1);
    dict.metadata[image_size_key] = std::to_string(size);
    dict.metadata[class_names_key] = R"(["a","b","c","d","e","f","g","h","i","j"])";
    for (Parameter& parameter : dict.parameters)
      if (parameter.is_weight())
        parameter.value = quantize(parameter.values().view(), parse_scheme("linear:4:channel"), parameter.name);
    save_state_dict(at("model.safetensors"), dict);
    write_standin(at("standin"), 100, 100, 1);
  }
  std::string at(const std::string& name) const { return (folder_.path() / name).string(); }
  Model model(int threads = 2) const { return Model(at("model.safetensors"), "cpu", threads); }

  /// What the network computes of some images, at once.
  std::vector<float> expected_logits(const Bytes& rgb, int64_t images) const {
    const auto backend = make_backend("cpu", 2);
    Network network(*backend, load_state_dict(at("model.safetensors")));
    Tensor<float> prepared(host_memory(), {images, size, size, 3}, MemoryCategory::data);
    Preprocessor preprocessor(Preprocess::for_image_size(size));
    for (int64_t i = 0; i < images; ++i)
      preprocessor.run(rgb.data() + i * height * width * 3, width, height, false, prepared.view().slice(i, 1).data());
    Pass pass(network, 0, network.layers().size(), prepared.shape(), Pass::Mode::inference);
    return backend->to_host(pass.forward(std::as_const(prepared).view()));
  }

  TemporaryFolder folder_;
};

/// The message of the std::runtime_error that `call` throws; nothing when it throws none.
template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(typeid(error), typeid(std::runtime_error));
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
    return error.what();
  }
  return "";
}

TEST_F(LibraryTest, SaysWhatItIs) {
  EXPECT_EQ(library_version(), std::to_string(NIBBLENET_VERSION_MAJOR) + "." + std::to_string(NIBBLENET_VERSION_MINOR) +
                                   "." + std::to_string(NIBBLENET_VERSION_PATCH));
  const Model loaded = model();
  EXPECT_EQ(loaded.network(), "AlexNet");
  EXPECT_EQ(loaded.image_size(), size);
  EXPECT_THAT(loaded.device(), HasSubstr("CPU, 2 threads"));
  EXPECT_THAT(loaded.classes(), ElementsAre("a", "b", "c", "d", "e", "f", "g", "h", "i", "j"));
  EXPECT_THAT(loaded.notes(), IsEmpty());
}

TEST_F(LibraryTest, LogitsAreThoseOfTheNetworkBitForBit) {
  Model loaded = model();
  for (const int64_t images : {3, 1}) {
    const Bytes rgb = noise(images);
    EXPECT_EQ(loaded.logits(rgb.data(), images, height, width), expected_logits(rgb, images)) << images;
  }
}

TEST_F(LibraryTest, ComputesInThePrecisionThatIsAskedFor) {
  const Bytes rgb = noise(2);
  EXPECT_EQ(model().precision(), "float32");
  EXPECT_EQ(Model(at("model.safetensors"), "cpu", 2, "auto").precision(), "float32") << "nothing was measured";
  const std::vector<float> floats = model().logits(rgb.data(), 2, height, width);
  for (const std::string name : {"int8", "bfloat16"}) {
    SCOPED_TRACE(name);
    Model narrow(at("model.safetensors"), "cpu", 2, name);
    EXPECT_EQ(narrow.precision(), name);
    ASSERT_FALSE(narrow.notes().empty());
    EXPECT_THAT(narrow.notes().front(), HasSubstr("was not measured"));
    const std::vector<float> logits = narrow.logits(rgb.data(), 2, height, width);
    EXPECT_NE(logits, floats);
    for (size_t i = 0; i < logits.size(); ++i) EXPECT_NEAR(logits[i], floats[i], 0.1);
  }
  for (const std::string name : {"float16", "int4"})
    EXPECT_THAT(refusal([&] { Model(at("model.safetensors"), "cpu", 2, name); }), HasSubstr(name));
}

TEST_F(LibraryTest, ManyImagesGoThroughInBatches) {
  constexpr int64_t images = 70, classes = 10;
  const Bytes rgb = noise(images);
  Model loaded = model();
  const std::vector<float> all = loaded.logits(rgb.data(), images, height, width);
  ASSERT_EQ(all.size(), static_cast<size_t>(images * classes));
  for (const int64_t image : {0, 31, 32, 69}) {
    const std::vector<float> one = loaded.logits(rgb.data() + image * height * width * 3, 1, height, width);
    for (int64_t c = 0; c < classes; ++c)
      EXPECT_NEAR(one[static_cast<size_t>(c)], all[static_cast<size_t>(image * classes + c)], 1e-4) << image;
  }
}

TEST_F(LibraryTest, ClassifiesPixelsAndFilesAlike) {
  Model loaded = model();
  const Bytes rgb = noise(1);
  write_bytes(at("picture.png"), png(width, height, rgb));
  const std::vector<Prediction> all = loaded.classify(rgb.data(), height, width, 99);
  ASSERT_EQ(all.size(), 10U);
  const std::vector<float> logits = loaded.logits(rgb.data(), 1, height, width);
  double sum = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    sum += all[i].probability;
    EXPECT_EQ(all[i].name, std::string(1, static_cast<char>('a' + all[i].label)));
    EXPECT_GE(logits[static_cast<size_t>(all[i == 0 ? 0 : i - 1].label)], logits[static_cast<size_t>(all[i].label)]);
  }
  EXPECT_NEAR(sum, 1, 1e-5);
  const std::vector<Prediction> best = loaded.classify(at("picture.png"));
  ASSERT_EQ(best.size(), 1U);
  EXPECT_EQ(best[0].label, all[0].label);
  EXPECT_EQ(best[0].probability, all[0].probability);
}

TEST_F(LibraryTest, EvaluatesAsTheToolsDo) {
  const Dataset images = load_dataset(at("standin"), Split::test, 50);
  const auto backend = make_backend("cpu", 2);
  Network network(*backend, load_state_dict(at("model.safetensors")));
  const Evaluation expected = nibblenet::evaluate(network, images, Preprocess::for_image_size(size), 128);

  Model loaded = model();
  const Score score = loaded.evaluate(at("standin"), 50);
  EXPECT_EQ(score.images, 50);
  EXPECT_EQ(score.correct, expected.correct);
  EXPECT_EQ(score.loss, expected.loss);
  EXPECT_EQ(score.accuracy(), expected.accuracy());
  EXPECT_EQ(score.data, "stand-in");
  EXPECT_THAT(score.note, HasSubstr("by position"));
}

TEST_F(LibraryTest, EvaluationReportsProgressAndStops) {
  Model loaded = model();
  int64_t calls = 0, last_total = 0;
  loaded.evaluate(at("standin"), 0, [&](int64_t, int64_t total) { return ++calls, last_total = total, false; });
  EXPECT_GE(calls, 1);
  EXPECT_EQ(last_total, 100);
  EXPECT_THAT(refusal([&] { loaded.evaluate(at("standin"), 0, [](int64_t, int64_t) { return true; }); }),
              HasSubstr("stopped"));
  const auto throws = [](int64_t, int64_t) -> bool { throw std::out_of_range("the caller's own"); };
  EXPECT_THROW(loaded.evaluate(at("standin"), 0, throws), std::out_of_range);
  EXPECT_EQ(loaded.evaluate(at("standin"), 10).images, 10);  // and goes on
}

TEST_F(LibraryTest, TheLedgerIsThatOfTheFileAndOfMemory) {
  const auto backend = make_backend("cpu", 2);
  Network network(*backend, load_state_dict(at("model.safetensors")));
  const std::vector<SizeRow> rows = network.ledger();
  const Ledger ledger = model().ledger();
  ASSERT_EQ(ledger.layers.size(), rows.size());
  int64_t file = 0, resident = 0, weights = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const LayerSize& layer = ledger.layers[i];
    EXPECT_EQ(layer.layer, rows[i].name);
    EXPECT_EQ(layer.scheme, "linear:4:channel");
    EXPECT_EQ(layer.estimated, rows[i].estimated.total());
    EXPECT_EQ(layer.bits_per_weight, rows[i].bits_per_weight());
    file += layer.file;
    resident += layer.resident;
    weights += layer.weights;
  }
  EXPECT_EQ(ledger.total.layer, "total");
  EXPECT_EQ(ledger.total.file, file);
  EXPECT_EQ(ledger.total.resident, resident);
  EXPECT_EQ(ledger.total.weights, weights);
  EXPECT_EQ(ledger.file_bytes, static_cast<int64_t>(std::filesystem::file_size(at("model.safetensors"))));
  EXPECT_GT(ledger.file_bytes, file);
}

TEST_F(LibraryTest, ModelsThatCannotBeLoadedAreRefusedInOneLine) {
  std::ofstream(at("text.safetensors")) << "no model\nat all\n";
  ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
  for (const std::string name : {"absent\nfile.safetensors", "standin", "text.safetensors", "pipe"})
    EXPECT_THAT(refusal([&] { Model(at(name), "cpu"); }), HasSubstr(name.substr(0, name.find('\n'))));
  EXPECT_THAT(refusal([&] { Model("", "cpu"); }), Not(IsEmpty()));
  EXPECT_THAT(refusal([&] { Model(at("model.safetensors"), "tpu"); }), HasSubstr("auto, cpu, cuda, cudnn"));
  for (const int threads : {-1, 1025, std::numeric_limits<int>::max()})
    EXPECT_THAT(refusal([&] { Model(at("model.safetensors"), "cpu", threads); }), HasSubstr("1 to 1024"));

  StateDict broken = load_state_dict(at("model.safetensors"));
  broken.at("features.0.bias").values().data()[0] = std::numeric_limits<float>::quiet_NaN();
  save_state_dict(at("nan.safetensors"), broken);
  EXPECT_THAT(refusal([&] { Model(at("nan.safetensors"), "cpu"); }), HasSubstr("features.0.bias"));
  broken.parameters.pop_back();
  save_state_dict(at("short.safetensors"), broken);
  EXPECT_THAT(refusal([&] { Model(at("short.safetensors"), "cpu"); }), HasSubstr("short.safetensors"));
}

TEST_F(LibraryTest, ImagesOfWrongSizesAreRefused) {
  Model loaded = model();
  const Bytes rgb = noise(1);
  constexpr int64_t huge = std::numeric_limits<int64_t>::max();
  for (const auto& [h, w] : std::vector<std::pair<int64_t, int64_t>>{{0, 4},
                                                                     {4, 0},
                                                                     {-1, 4},
                                                                     {4, -1},
                                                                     {huge, 4},
                                                                     {4, huge},
                                                                     {huge, huge},
                                                                     {1 << 20, 1 << 20},
                                                                     {(1 << 20) + 1, 1}}) {
    EXPECT_THAT(refusal([&] { loaded.logits(rgb.data(), 1, h, w); }), HasSubstr("supported: 1 to 1048576 a side"));
    EXPECT_THAT(refusal([&] { loaded.classify(rgb.data(), h, w); }), HasSubstr("supported: 1 to 1048576 a side"));
  }
  EXPECT_THAT(refusal([&] { loaded.logits(nullptr, 1, 4, 4); }), HasSubstr("null"));
  EXPECT_THAT(refusal([&] { loaded.logits(rgb.data(), -1, 4, 4); }), HasSubstr("-1 images"));
  EXPECT_THAT(refusal([&] { loaded.logits(rgb.data(), huge, 1, 1); }), HasSubstr("memory"));
  EXPECT_THAT(refusal([&] { loaded.logits(rgb.data(), huge / 100, 1, 1); }), HasSubstr("memory"));
  EXPECT_THAT(loaded.logits(nullptr, 0, 4, 4), IsEmpty());
  for (const int64_t top : {int64_t{0}, -huge})
    EXPECT_THAT(refusal([&] { loaded.classify(rgb.data(), 4, 4, top); }), HasSubstr("1 or more"));
  EXPECT_EQ(loaded.logits(rgb.data(), 1, 1, 1).size(), 10U);  // the smallest image there is
}

TEST_F(LibraryTest, PicturesAndDataThatCannotBeReadAreRefused) {
  Model loaded = model();
  std::ofstream(at("text.png")) << "no picture";
  ASSERT_EQ(mkfifo(at("pipe.png").c_str(), 0600), 0);
  for (const std::string name : {"absent.png", "text.png", "standin", "pipe.png"})
    EXPECT_THAT(refusal([&] { loaded.classify(at(name)); }), HasSubstr(name));
  for (const std::string name : {"absent", "text.png", "pipe.png"})
    EXPECT_THAT(refusal([&] { loaded.evaluate(at(name)); }), HasSubstr(name));
  for (const int64_t limit : {-1, 9})
    EXPECT_THAT(refusal([&] { loaded.evaluate(at("standin"), limit); }), Not(IsEmpty()));
}

TEST_F(LibraryTest, AModelThatWasMovedFromIsEmpty) {
  Model loaded = model();
  const Bytes rgb = noise(1);
  const std::vector<float> logits = loaded.logits(rgb.data(), 1, height, width);
  Model other = std::move(loaded);
  EXPECT_EQ(other.logits(rgb.data(), 1, height, width), logits);
  Model& empty = loaded;  // NOLINT(bugprone-use-after-move): that is the test
  EXPECT_THAT(refusal([&] { empty.logits(rgb.data(), 1, height, width); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { empty.classify(rgb.data(), height, width); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { empty.classify("picture.png"); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { empty.evaluate("standin"); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { empty.ledger(); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { empty.network(); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { empty.device(); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { empty.classes(); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { empty.notes(); }), HasSubstr("moved from"));
  EXPECT_THAT(refusal([&] { static_cast<void>(empty.image_size()); }), HasSubstr("moved from"));
  empty = std::move(other);
  EXPECT_EQ(empty.logits(rgb.data(), 1, height, width), logits);
}

TEST_F(LibraryTest, ThreadsHaveModelsOfTheirOwnOrShareOne) {
  const Bytes rgb = noise(4);
  Model shared = model();
  const std::vector<float> expected = shared.logits(rgb.data(), 4, height, width);
  std::vector<std::vector<float>> results(6);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < results.size(); ++i)
    threads.emplace_back([&, i] {
      if (i % 2 == 0) {
        for (int repeat = 0; repeat < 3; ++repeat) results[i] = shared.logits(rgb.data(), 4, height, width);
      } else {
        results[i] = model().logits(rgb.data(), 4, height, width);
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& result : results) EXPECT_EQ(result, expected);
}

TEST_F(LibraryTest, ModelsGoFromThreadToThread) {
  const Bytes rgb = noise(2);
  std::optional<Model> made;
  std::thread([&] { made.emplace(model()); }).join();
  std::vector<float> there;
  std::thread([&] { there = made->logits(rgb.data(), 2, height, width); }).join();
  EXPECT_EQ(made->logits(rgb.data(), 2, height, width), there);
  std::thread([&] { made.reset(); }).join();
}

TEST_F(LibraryTest, TheCallersOpenMpAndSignalsStayAsTheyWere) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(3);
  omp_set_dynamic(1);
  Model loaded = model(1);
  sigset_t inside, after;
  loaded.evaluate(at("standin"), 10, [&](int64_t, int64_t) { return pthread_sigmask(0, nullptr, &inside) != 0; });
  pthread_sigmask(0, nullptr, &after);
  for (const int signal : {SIGINT, SIGUSR1, SIGTERM}) {
    EXPECT_EQ(sigismember(&inside, signal), 1) << "on the model's thread";
    EXPECT_EQ(sigismember(&after, signal), 0);
  }
  EXPECT_EQ(omp_get_max_threads(), 3);
  EXPECT_EQ(omp_get_dynamic(), 1);
  omp_set_dynamic(0);
  omp_set_num_threads(threads);
}

volatile std::sig_atomic_t alarms = 0;

TEST_F(LibraryTest, SignalsDoNotDisturbWhatIsComputed) {
  Model loaded = model();
  const Bytes rgb = noise(2);
  const std::vector<float> expected = loaded.logits(rgb.data(), 2, height, width);
  const auto before = std::signal(SIGALRM, [](int) { alarms = alarms + 1; });
  const itimerval often{.it_interval = {0, 500}, .it_value = {0, 500}}, never{};
  setitimer(ITIMER_REAL, &often, nullptr);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(loaded.logits(rgb.data(), 2, height, width), expected);
  setitimer(ITIMER_REAL, &never, nullptr);
  std::signal(SIGALRM, before);
  EXPECT_GT(alarms, 0);
}

TEST_F(LibraryTest, AForkedChildIsRefusedAndDoesNotHang) {
  Model loaded = model();
  const Bytes rgb = noise(1);
  loaded.logits(rgb.data(), 1, height, width);
  const pid_t child = fork();
  if (child == 0) {
    const bool old_one =
        refusal([&] { loaded.logits(rgb.data(), 1, height, width); }).find("forked") != std::string::npos;
    const bool new_one = refusal([&] { model(); }).find("forked") != std::string::npos;
    { const Model ended = std::move(loaded); }  // without waiting for its thread
    _exit(old_one && new_one ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(LibraryTest, AParallelRegionOfTheCallerGetsTheSameBits) {
  Model loaded = model();
  const Bytes rgb = noise(1);
  const std::vector<float> expected = loaded.logits(rgb.data(), 1, height, width);
  std::vector<float> inside;
#pragma omp parallel num_threads(2)
#pragma omp single
  inside = loaded.logits(rgb.data(), 1, height, width);
  EXPECT_EQ(inside, expected);
}

TEST_F(LibraryTest, AProgressFunctionCannotUseItsModel) {
  Model loaded = model();
  const Bytes rgb = noise(1);
  const auto uses = [&](int64_t, int64_t) { return loaded.logits(rgb.data(), 1, height, width).empty(); };
  EXPECT_THAT(refusal([&] { loaded.evaluate(at("standin"), 10, uses); }), HasSubstr("progress function"));
}

TEST_F(LibraryTest, AnOutputThatIsNotFiniteIsRefused) {
  StateDict dict = load_state_dict(at("model.safetensors"));
  for (const char* name : {"classifier.1.bias", "classifier.4.bias"})
    for (float& value : dict.at(name).values().view()) value = std::numeric_limits<float>::max();
  save_state_dict(at("overflow.safetensors"), dict);
  Model loaded(at("overflow.safetensors"), "cpu", 2);
  const Bytes rgb = noise(1);
  ASSERT_FALSE(std::isfinite(loaded.logits(rgb.data(), 1, height, width).at(0)));
  EXPECT_THAT(refusal([&] { loaded.classify(rgb.data(), height, width); }), HasSubstr("not finite"));
  EXPECT_THAT(refusal([&] { loaded.evaluate(at("standin"), 10); }), HasSubstr("not finite"));
}

}  // namespace
}  // namespace nibblenet::testing
