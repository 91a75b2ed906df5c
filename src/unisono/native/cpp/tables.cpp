#include "tables.h"

#include <cstring>
#include <stdexcept>

namespace unisono {

Tables tables;

void Tables::set(const i64* exp2_in, const i64* gate_in, const i64* cosine_in,
                 const i64* log2_in) {
    std::memcpy(exp2, exp2_in, sizeof exp2);
    for (int k = 0; k < 4096; k++) {
        const i64 step = gate_in[k + 1] - gate_in[k];
        if (step < 0 || step >> GATE_STEP) throw std::logic_error("gate table: a step is too far");
        gate[k] = (gate_in[k] << GATE_STEP) | step;
    }
    for (int k = 4096; k < 8192; k++) gate[k] = (i64(1) << 24) << GATE_STEP;
    std::memcpy(cosine, cosine_in, 4097 * sizeof(i64));
    std::memcpy(log2, log2_in, 4097 * sizeof(i64));
}

}  // namespace unisono
