/* The loops of rans.py, compiled. The bytes are the same; rans.py tells what they mean. */

#include <stdint.h>

#define TOTAL_BITS 14
#define LOW 65536u
#define REACH 15
#define ESCAPE 31
#define WIDTH 33 /* cumulative frequencies of one table */
#define ESCAPE_BITS_MAX 18
#define ESCAPE_LENGTH_BITS 5

/* Raised with every change, so that a library of another source is not used. */
int64_t rans_version(void) { return 1; }

enum { WHOLE = 0, COARSE = 1, FINE = 2 };
enum { SHORT = -1, REST = -2, STATE = -3, LARGE = -4, FULL = -5 };

typedef struct {
    uint32_t state;
    uint16_t *floor, *at; /* words are written downwards */
    int full;
} Writer;

static void put(Writer *w, uint32_t start, uint32_t freq) {
    if (w->state >= (freq << (32 - TOTAL_BITS)) && freq < (1u << TOTAL_BITS)) {
        if (w->at == w->floor) {
            w->full = 1;
            return;
        }
        *--w->at = (uint16_t)w->state;
        w->state >>= 16;
    }
    w->state = (w->state / freq << TOTAL_BITS) + w->state % freq + start;
}

static void put_raw(Writer *w, uint32_t value, int bits) {
    if (bits > 0) put(w, value << (TOTAL_BITS - bits), 1u << (TOTAL_BITS - bits));
}

static int length_of(uint32_t value) {
    int bits = 0;
    while (value >> bits) bits++;
    return bits;
}

/* Last written, first read: sign and length are read before the bits. */
static void put_escape(Writer *w, int32_t value, int32_t reach) {
    uint32_t rest = (uint32_t)(value < 0 ? -value : value) - (uint32_t)reach;
    int bits = length_of(rest);
    put_raw(w, rest & 0x1ff, bits < 9 ? bits : 9);
    put_raw(w, rest >> 9, bits - 9);
    put_raw(w, (uint32_t)bits, ESCAPE_LENGTH_BITS);
    put_raw(w, value < 0, 1);
}

static int32_t halve(int32_t value) { return value < 0 ? -(-value >> 1) : value >> 1; }

/* First and last value, counted from zero, that share a coarse value. */
static void cell(int32_t coarse, int32_t *first, int32_t *last) {
    *first = coarse > 0 ? 2 * coarse : 2 * coarse - 1;
    *last = coarse < 0 ? 2 * coarse : 2 * coarse + 1;
}

/* Where the values of a cell begin when it is stretched over the whole total. */
static uint32_t stretched(const uint16_t *cum, int32_t first, int32_t last, int32_t value) {
    uint32_t low = cum[first + REACH], width = cum[last + 1 + REACH] - low;
    return (((uint32_t)cum[value + REACH] - low) << TOTAL_BITS) / width;
}

static void put_fine(Writer *w, const uint16_t *cum, int32_t value) {
    int32_t first, last, magnitude = value < 0 ? -value : value;
    if (magnitude > REACH) {
        put_raw(w, magnitude & 1, 1);
        return;
    }
    cell(halve(value), &first, &last);
    uint32_t start = stretched(cum, first, last, value);
    put(w, start, stretched(cum, first, last, value + 1) - start);
}

static void put_value(Writer *w, const uint16_t *cum, int32_t value, int mode) {
    int32_t first = value, last = value;
    if (value < -REACH || value > REACH) {
        put_escape(w, mode == COARSE ? halve(value) : value,
                   mode == COARSE ? (REACH + 1) / 2 : REACH + 1);
        put(w, cum[ESCAPE], cum[ESCAPE + 1] - cum[ESCAPE]);
        return;
    }
    if (mode == COARSE) cell(halve(value), &first, &last);
    put(w, cum[first + REACH], cum[last + 1 + REACH] - cum[first + REACH]);
}

/* Returns the count of words, at the end of `words`, or FULL. */
int64_t rans_encode(const int32_t *values, const uint8_t *tables, const uint8_t *shifts,
                    int64_t count, const uint16_t *cumulative, int32_t mode, uint16_t *words,
                    int64_t room) {
    Writer w = {LOW, words, words + room, 0};
    for (int64_t i = count - 1; i >= 0 && !w.full; i--) {
        const uint16_t *cum = cumulative + WIDTH * tables[i];
        int shift = shifts[i];
        int32_t value = values[i];
        if (shift) {
            uint32_t moved = (uint32_t)(value + (1 << (shift - 1)));
            uint32_t low = moved & ((1u << shift) - 1);
            int32_t high = (int32_t)moved >> shift;
            if (mode == FINE) {
                put_raw(&w, low & 1, 1);
                continue;
            }
            if (mode == COARSE) {
                put_raw(&w, low >> 1, shift - 1);
            } else {
                put_raw(&w, low, shift);
            }
            put_value(&w, cum, high, WHOLE);
        } else if (mode == FINE) {
            put_fine(&w, cum, value);
        } else {
            put_value(&w, cum, value, mode);
        }
    }
    if (w.full || w.at - w.floor < 2) return FULL;
    *--w.at = (uint16_t)w.state;
    *--w.at = (uint16_t)(w.state >> 16);
    return words + room - w.at;
}

typedef struct {
    uint32_t state;
    const uint16_t *at, *end;
    int problem;
} Reader;

static void take(Reader *r, uint32_t start, uint32_t freq) {
    uint32_t slot = r->state & ((1u << TOTAL_BITS) - 1);
    r->state = freq * (r->state >> TOTAL_BITS) + slot - start;
    if (r->state < LOW) {
        if (r->at == r->end) {
            r->problem = SHORT;
            r->state = LOW;
            return;
        }
        r->state = r->state << 16 | *r->at++;
    }
}

static uint32_t take_raw(Reader *r, int bits) {
    if (bits <= 0) return 0;
    uint32_t slot = r->state & ((1u << TOTAL_BITS) - 1);
    uint32_t value = slot >> (TOTAL_BITS - bits);
    take(r, value << (TOTAL_BITS - bits), 1u << (TOTAL_BITS - bits));
    return value;
}

static int32_t take_escape(Reader *r, int32_t reach) {
    uint32_t is_negative = take_raw(r, 1), bits = take_raw(r, ESCAPE_LENGTH_BITS);
    if (bits > ESCAPE_BITS_MAX) {
        r->problem = LARGE;
        return 0;
    }
    uint32_t high = take_raw(r, (int)bits - 9);
    uint32_t rest = high << 9 | take_raw(r, bits < 9 ? (int)bits : 9);
    int32_t value = (int32_t)rest + reach;
    return is_negative ? -value : value;
}

static int32_t take_whole(Reader *r, const uint16_t *cum) {
    uint32_t slot = r->state & ((1u << TOTAL_BITS) - 1);
    int symbol = REACH;
    while (cum[symbol] > slot) symbol--;
    while (cum[symbol + 1] <= slot) symbol++;
    take(r, cum[symbol], cum[symbol + 1] - cum[symbol]);
    return symbol == ESCAPE ? take_escape(r, REACH + 1) : symbol - REACH;
}

static int32_t take_coarse(Reader *r, const uint16_t *cum) {
    uint32_t slot = r->state & ((1u << TOTAL_BITS) - 1);
    int symbol = REACH;
    int32_t first, last;
    while (cum[symbol] > slot) symbol--;
    while (cum[symbol + 1] <= slot) symbol++;
    if (symbol == ESCAPE) {
        take(r, cum[ESCAPE], cum[ESCAPE + 1] - cum[ESCAPE]);
        return take_escape(r, (REACH + 1) / 2);
    }
    cell(halve(symbol - REACH), &first, &last);
    take(r, cum[first + REACH], cum[last + 1 + REACH] - cum[first + REACH]);
    return halve(symbol - REACH);
}

static int32_t take_fine(Reader *r, const uint16_t *cum, int32_t coarse) {
    int32_t first, last, value;
    if (coarse > REACH / 2 || coarse < -(REACH / 2)) {
        int32_t bit = (int32_t)take_raw(r, 1);
        return coarse < 0 ? 2 * coarse - bit : 2 * coarse + bit;
    }
    cell(coarse, &first, &last);
    uint32_t slot = r->state & ((1u << TOTAL_BITS) - 1);
    for (value = first; value < last && stretched(cum, first, last, value + 1) <= slot;) value++;
    uint32_t start = stretched(cum, first, last, value);
    take(r, start, stretched(cum, first, last, value + 1) - start);
    return value;
}

/* Returns 0 and fills `values`, or what is wrong. With FINE, `values` holds the coarse values. */
int64_t rans_decode(const uint16_t *words, int64_t word_count, const uint8_t *tables,
                    const uint8_t *shifts, int64_t count, const uint16_t *cumulative,
                    int32_t mode, int32_t *values) {
    if (word_count < 2) return SHORT;
    Reader r = {(uint32_t)words[0] << 16 | words[1], words + 2, words + word_count, 0};
    if (r.state < LOW) return STATE;
    for (int64_t i = 0; i < count && !r.problem; i++) {
        const uint16_t *cum = cumulative + WIDTH * tables[i];
        int shift = shifts[i];
        if (mode == FINE) {
            values[i] = shift ? (int32_t)(((uint32_t)values[i] << 1) + take_raw(&r, 1) -
                                          (1u << (shift - 1)))
                              : take_fine(&r, cum, values[i]);
        } else if (shift) {
            int32_t high = take_whole(&r, cum);
            int bits = mode == COARSE ? shift - 1 : shift;
            uint32_t low = take_raw(&r, bits);
            values[i] = (int32_t)(((uint32_t)high << bits) + low -
                                  (mode == COARSE ? 0 : 1u << (shift - 1)));
        } else {
            values[i] = mode == COARSE ? take_coarse(&r, cum) : take_whole(&r, cum);
        }
    }
    if (r.problem) return r.problem;
    if (r.at != r.end) return REST;
    return r.state == LOW ? 0 : STATE;
}
