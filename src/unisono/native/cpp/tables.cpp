#include "tables.h"

#include <cstring>
#include <stdexcept>

namespace unisono {

Tables tables;

void Tables::set(const i64* exp2_in, const i64* gate_in, const i64* cosine_in,
                 const i64* log2_in) {
    for (int k = 0; k < 1024; k++) {
        const i64 rest = exp2_in[k] - exp2_in[k + 1] - exp2_estimate(exp2_in[k]);
        if (rest < 0 || rest >> EXP2_REST) throw std::logic_error("exp2 table: a step is too far");
        exp2[k] = (exp2_in[k] << EXP2_REST) | rest;
    }
    for (int k = 0; k < 4096; k++) {
        const i64 step = gate_in[k + 1] - gate_in[k];
        if (step < 0 || step >> GATE_STEP) throw std::logic_error("gate table: a step is too far");
        gate[k] = (gate_in[k] << GATE_STEP) | step;
    }
    std::memcpy(cosine, cosine_in, 4097 * sizeof(i64));
    std::memcpy(log2, log2_in, 4097 * sizeof(i64));
}

}  // namespace unisono
