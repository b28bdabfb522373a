#pragma once

#include <nlohmann/json.hpp>

/// The JSON library, whose functions are compiled once (json.cpp) and not in every source that uses
/// them: under sanitizers that takes longer than all else in a source.
extern template class nlohmann::basic_json<>;
extern template class nlohmann::detail::serializer<nlohmann::json>;
extern template class nlohmann::detail::lexer<nlohmann::json,
                                              nlohmann::detail::iterator_input_adapter<std::string::const_iterator>>;
extern template class nlohmann::detail::parser<nlohmann::json,
                                               nlohmann::detail::iterator_input_adapter<std::string::const_iterator>>;
extern template class nlohmann::detail::lexer<nlohmann::json, nlohmann::detail::iterator_input_adapter<const char*>>;
extern template class nlohmann::detail::parser<nlohmann::json, nlohmann::detail::iterator_input_adapter<const char*>>;
extern template class nlohmann::detail::lexer<nlohmann::json, nlohmann::detail::input_stream_adapter>;
extern template class nlohmann::detail::parser<nlohmann::json, nlohmann::detail::input_stream_adapter>;
