#include <nibblenet.h>

#include <cstdio>
#include <exception>

/// example MODEL IMAGE...: what each picture shows, then the bytes of the model's layers.
int main(int argc, char** argv) try {
  if (argc < 3) return std::fputs("usage: example MODEL IMAGE...\n", stderr), 2;
  nibblenet::Model model(argv[1], "cpu");
  for (int i = 2; i < argc; ++i)
    for (const nibblenet::Prediction& best : model.classify(argv[i], 3))
      std::printf("%s: %s %.2f %%\n", argv[i], best.name.c_str(), 100 * static_cast<double>(best.probability));
  const nibblenet::Ledger ledger = model.ledger();
  for (const nibblenet::LayerSize& layer : ledger.layers)
    std::printf("%-12s %-24s %8lld bytes\n", layer.layer.c_str(), layer.scheme.c_str(),
                static_cast<long long>(layer.resident));
  std::printf("%s: %lld bytes in memory, %lld in the file\n", model.network().c_str(),
              static_cast<long long>(ledger.total.resident), static_cast<long long>(ledger.file_bytes));
  return 0;
} catch (const std::exception& error) {
  return std::fprintf(stderr, "example: error: %s\n", error.what()), 1;
}
