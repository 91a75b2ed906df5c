// An exact shortlist of the outputs that may be chosen: those that may hold a row's largest product,
// or the largest sum of a product and noise.
//
// Choosing a token reads the output matrix, more than half of what a small model reads for a token.
// A copy in four bits is half as long. With it comes a bound on what it leaves out, so that most
// blocks of outputs are ruled out and only the others are computed. The result is that of the whole
// product, whatever the copy holds: what it was made from decides how long the list is.
//
// A weight W[n,i] is taken as mean[i] + deviation[i] * step[n] * (q - 7.5), q in 0..15. Of a row x,
// the means give every output the same; so outputs are compared by
//     estimate[n] = step[n] * sum_i x'[i] * (q[n,i] - 7.5),   x'[i] = x[i] * deviation[i], rounded
// and what it leaves out, R[n,i], is bounded by the inequality of Cauchy and Schwarz
//     |sum_i x[i] R[n,i]| <= |x / s| * |R[n] * s|
// for any s > 0. It is smallest where s[i]^2 is as |x[i]| to |R[n,i]|, which is why the copy is made
// after some rows were seen. Sums are float32: their own rounding is in the bound too.
//
// A token is drawn by adding Gumbel noise -log(-log(u)) to logits. With z = 1 - u, -log(u) >= z, so
// noise in units of ln 2 is at most -log2(z) - log2(log2(e)): tight where noise is large, and the
// binary logarithm of a float32 is at least its exponent plus its fraction.
#pragma once
#include <functional>
#include <vector>

#include "memory.h"
#include "product.h"

namespace unisono {

class Shortlist {
  public:
    // Rows at once. For more, instructions bound the copy as they do the matrix.
    static constexpr int ROWS = 4;

    // How a row's token is chosen.
    struct Choice {
        double noise = 0;  // products per unit (ln 2) of noise; 0: the largest product
        i64 position = 0;  // of the noise
        uint64_t seed = 0;
    };
    // Exact products of a block.
    struct Known {
        int first, outputs;
        const i64* products;
    };
    // What a product, and the sum of a product and noise, must reach to be listed.
    struct Least {
        double product, sum;
    };
    // These of row m, from the blocks that hold what seem to be the largest of either.
    using Judge = std::function<Least(int m, const Known& product, const Known& sum)>;

    // Whether these rows are searched with the copy, which is made when enough rows were seen.
    bool serves(Pool& pool, const NarrowRows& x, const Matrix& w);
    // Hands every block that may hold what is chosen to the sink, one row at a time; returns how
    // many.
    int search(Pool& pool, const NarrowRows& x, const Matrix& w, const Choice* choices,
               const Judge& judge, const Sink& sink);
    // The two steps of `serves`.
    void learn(const NarrowRows& x);
    void build(Pool& pool, const Matrix& w);

  private:
    static constexpr int FIRST_PAUSE = 8;
    struct Query;

    void sample(const Matrix& w);
    void build_block(const Matrix& w, int b);
    Query prepare(const NarrowRows& x, int m) const;
    template <int R>
    void estimate(const Query* queries, int b, i32* sums) const;

    int inputs_ = 0, learned_ = 0;
    int pause_ = 0, next_pause_ = FIRST_PAUSE;  // passes without it, after a list too long
    bool built_ = false;
    std::vector<double> seen_;    // |x| of recent rows, each of largest element 1: their average
    Arena arena_;
    u8* digits_ = nullptr;        // [outputs / 16][inputs / 8][16][4], two inputs in a byte
    float* scales_ = nullptr;     // [outputs / 16][step, bound][16]
    std::vector<float> mean_, deviation_, inverse_, importance_;  // of inputs: inverse_ is of the
                                                                  // deviation, importance_ is s
    std::vector<float> highest_, loudest_;  // [rows][blocks]: of products, of sums with noise
};

}  // namespace unisono
