/* A client of federated learning: trains a linear model on the data it is given, and prints its update envelope.

   A WASI preview 1 command without a library, so that any clang with wasm-ld builds it (build.py has the line).
   Environment:
     ROUND_ID, FL_JOB_ID, PROPLET_ID   which round of what, and who we are
     HYPERPARAMS                       {"learning_rate": 0.1, "epochs": 5, "format": "json-f64" or "f32-delta",
                                        "data": {PROPLET_ID: [[x..., y], ...]}}
     DATASET_DATA                      the rows, if they are not in HYPERPARAMS
     FL_GLOBAL_UPDATE_B64, _FORMAT, FL_GLOBAL_VERSION   the model so far; without it, all is zero
   The model is y = w.x + b; its parameters are w... and b. `loss` is the mean squared error before training, so of the
   global model; `trained_loss` the one after. */

typedef unsigned char byte;
typedef unsigned long size;

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))
WASI("environ_sizes_get") int environ_sizes_get(size *count, size *bytes);
WASI("environ_get") int environ_get(char **vars, char *buffer);
WASI("fd_write") int fd_write(int fd, const void *parts, size count, size *written);
WASI("proc_exit") _Noreturn void proc_exit(int status);

enum { TEXT = 1 << 20, VARS = 256, FEATURES = 64, ROWS = 4096 };

static char text[TEXT], out[1 << 16];
static char *vars[VARS];
static byte given[TEXT], sent[1 << 14];
static double rows[ROWS][FEATURES + 1], model[FEATURES + 1], before[FEATURES + 1], step[FEATURES + 1];
static size width, height, filled;

static size length(const char *s) { size n = 0; while (s[n]) n++; return n; }

static void say(int fd, const char *s, size n) {
    struct { const char *at; size n; } part = {s, n};
    while (part.n) {
        size written = 0;
        if (fd_write(fd, &part, 1, &written)) proc_exit(2);
        part.at += written;
        part.n -= written;
    }
}

static _Noreturn void fail(const char *why) {
    say(2, why, length(why));
    say(2, "\n", 1);
    proc_exit(1);
}

static int same(const char *a, const char *b, size n) {
    for (size i = 0; i < n; i++) if (a[i] != b[i] || !a[i]) return 0;
    return 1;
}

static const char *variable(const char *name) {
    size n = length(name);
    for (char **v = vars; *v; v++) if (same(*v, name, n) && (*v)[n] == '=') return *v + n + 1;
    return 0;
}

/* --- JSON: as much as hyperparameters need, without escapes in names ---------------------------------------------- */

static const char *space(const char *s) { while (*s == ' ' || *s == '\n' || *s == '\t' || *s == '\r') s++; return s; }

static const char *past_string(const char *s) {
    for (s++; *s && *s != '"'; s++) if (*s == '\\' && s[1]) s++;
    if (!*s) fail("JSON: a string does not end");
    return s + 1;
}

static const char *past(const char *s) {
    int depth = 0;
    s = space(s);
    do {
        if (!*s) fail("JSON: it does not end");
        if (*s == '"') { s = past_string(s); continue; }
        if (*s == '[' || *s == '{') depth++;
        if (*s == ']' || *s == '}') depth--;
        s++;
    } while (depth > 0 || (*s && *s != ',' && *s != ']' && *s != '}'));
    return space(s);
}

/* The value of a name in an object, or 0. */
static const char *member(const char *s, const char *name) {
    size n = length(name);
    if (!s || *(s = space(s)) != '{') return 0;
    for (s = space(s + 1); *s == '"'; s = space(s + 1)) {
        const char *key = s + 1, *end = past_string(s);
        s = space(end);
        if (*s != ':') fail("JSON: a name has no value");
        s = space(s + 1);
        if ((size)(end - 1 - key) == n && same(key, name, n)) return s;
        s = past(s);
        if (*s != ',') return 0;
    }
    return 0;
}

static double number(const char **at) {
    const char *s = space(*at);
    int minus = *s == '-', power = 0, back = 0, exponent = 0;
    double value = 0;
    if (minus || *s == '+') s++;
    if (*s < '0' || *s > '9') fail("JSON: a number is missing");
    for (; *s >= '0' && *s <= '9'; s++) value = value * 10 + (*s - '0');
    if (*s == '.') for (s++; *s >= '0' && *s <= '9'; s++, power--) value = value * 10 + (*s - '0');
    if (*s == 'e' || *s == 'E') {
        s++;
        if ((back = *s == '-') || *s == '+') s++;
        for (; *s >= '0' && *s <= '9' && exponent < 400; s++) exponent = exponent * 10 + (*s - '0');
    }
    power += back ? -exponent : exponent;
    for (; power > 0; power--) value *= 10;
    for (; power < 0; power++) value /= 10;
    *at = space(s);
    return minus ? -value : value;
}

/* The numbers of a list; at most `most`. */
static size list(const char **at, double *into, size most) {
    const char *s = space(*at);
    size n = 0;
    if (*s != '[') fail("JSON: a list is missing");
    for (s = space(s + 1); *s != ']'; s = *s == ',' ? s + 1 : s) {
        if (n == most) fail("more numbers in a list than there is room for");
        into[n++] = number(&s);
        if (*s != ',' && *s != ']') fail("JSON: a list does not end");
    }
    *at = space(s + 1);
    return n;
}

static void read_rows(const char *s) {
    s = space(s);
    if (*s != '[') fail("the data is no list of rows");
    for (s = space(s + 1); *s != ']'; s = *s == ',' ? space(s + 1) : s) {
        if (height == ROWS) fail("more rows than there is room for");
        size n = list(&s, rows[height], FEATURES + 1);
        if (n < 2 || (height && n != width)) fail("each row needs the same numbers: x..., y");
        width = n;
        height++;
        if (*s != ',' && *s != ']') fail("the data does not end");
    }
    if (!height) fail("there is no data to train on");
}

/* --- base64 and numbers out ---------------------------------------------------------------------------------------- */

static const char *const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static size decode(const char *s, byte *into) {
    size n = 0, bits = 0, held = 0;
    for (; *s && *s != '='; s++) {
        size value = 0;
        while (value < 64 && digits[value] != *s) value++;
        if (value == 64) fail("the global update is no base64");
        held = (held << 6 | value) & 0xffffff;
        if ((bits += 6) >= 8) into[n++] = (byte)(held >> (bits -= 8));
    }
    return n;
}

static void put(const char *s) {
    for (; *s; s++) {
        if (filled == sizeof out) fail("the envelope is too large");
        out[filled++] = *s;
    }
}

static void put_base64(const byte *s, size n) {
    char four[5] = {0};
    for (size i = 0; i < n; i += 3) {
        size left = n - i, held = (size)s[i] << 16 | (left > 1 ? (size)s[i + 1] << 8 : 0) | (left > 2 ? s[i + 2] : 0);
        for (int k = 0; k < 4; k++) four[k] = (size)k <= left ? digits[held >> (18 - 6 * k) & 63] : '=';
        put(four);
    }
}

/* Sixteen digits and an exponent: 1.234567890123456e-3. */
static size write_number(double value, char *into) {
    size n = 0;
    int power = 0;
    if (value != value || value - value != 0) fail("the training diverged");
    if (value < 0) { into[n++] = '-'; value = -value; }
    if (value > 0) {
        for (; value >= 10; power++) value /= 10;
        for (; value < 1; power--) value *= 10;
    }
    for (int i = 0; i < 16; i++) {
        int digit = (int)value;
        if (digit > 9) digit = 9;
        into[n++] = (char)('0' + digit);
        if (i == 0) into[n++] = '.';
        value = (value - digit) * 10;
    }
    into[n++] = 'e';
    into[n++] = power < 0 ? '-' : '+';
    if (power < 0) power = -power;
    for (int unit = 100; unit; unit /= 10) into[n++] = (char)('0' + power / unit % 10);
    into[n] = 0;
    return n;
}

static void put_number(double value) { char written[40]; write_number(value, written); put(written); }

static void put_count(size value) {
    char written[24];
    int at = 23;
    for (written[at] = 0; value || at == 23; value /= 10) written[--at] = (char)('0' + value % 10);
    put(written + at);
}

static void put_text(const char *name, const char *value) {
    if (!value) return;
    put("\""); put(name); put("\":\""); put(value); put("\",");
}

/* --- the model ------------------------------------------------------------------------------------------------------ */

static double error_of(size row) {
    double guess = model[width - 1];
    for (size i = 0; i + 1 < width; i++) guess += model[i] * rows[row][i];
    return guess - rows[row][width - 1];
}

static double loss(void) {
    double sum = 0;
    for (size row = 0; row < height; row++) sum += error_of(row) * error_of(row);
    return sum / height;
}

static void train(double rate) {
    for (size i = 0; i < width; i++) step[i] = 0;
    for (size row = 0; row < height; row++) {
        double error = error_of(row);
        for (size i = 0; i < width; i++) step[i] += 2 * error * (i + 1 < width ? rows[row][i] : 1) / height;
    }
    for (size i = 0; i < width; i++) model[i] -= rate * step[i];
}

static void read_global(void) {
    const char *encoded = variable("FL_GLOBAL_UPDATE_B64"), *form = variable("FL_GLOBAL_UPDATE_FORMAT");
    if (!encoded) return;
    size n = decode(encoded, given);
    if (form && same(form, "f32-delta", 9)) {
        if (n != width * 4) fail("the global update has another number of parameters than the data asks for");
        for (size i = 0; i < width; i++) {
            union { unsigned int bits; float value; } one;
            one.bits = given[i * 4] | given[i * 4 + 1] << 8 | given[i * 4 + 2] << 16 | (unsigned)given[i * 4 + 3] << 24;
            model[i] = one.value;
        }
    } else {
        const char *at = (const char *)given;
        if (list(&at, model, FEATURES + 1) != width) fail("the global update has another number of parameters");
    }
}

static void put_update(int changes) {
    size n = 0;
    if (changes) {
        for (size i = 0; i < width; i++) {
            union { unsigned int bits; float value; } one = {.value = (float)(model[i] - before[i])};
            for (int shift = 0; shift < 32; shift += 8) sent[n++] = (byte)(one.bits >> shift);
        }
    } else {
        for (size i = 0; i < width; i++) {
            sent[n++] = i ? ',' : '[';
            n += write_number(model[i], (char *)sent + n);
        }
        sent[n++] = ']';
    }
    put_base64(sent, n);
}

void _start(void) {
    size count, bytes;
    if (environ_sizes_get(&count, &bytes) || count >= VARS || bytes > sizeof text) fail("the environment is too large");
    if (environ_get(vars, text)) fail("there is no environment");
    const char *hyper = variable("HYPERPARAMS"), *data = variable("DATASET_DATA"), *form, *at;
    if (!variable("ROUND_ID")) fail("ROUND_ID is not set: this is no round of federated learning");
    if (!data && variable("PROPLET_ID")) data = member(member(hyper, "data"), variable("PROPLET_ID"));
    if (!data) fail("no data: give DATASET_DATA, or HYPERPARAMS with data for this PROPLET_ID");
    double rate = (at = member(hyper, "learning_rate")) ? number(&at) : 0.1;
    double epochs = (at = member(hyper, "epochs")) ? number(&at) : 1;
    int changes = (form = member(hyper, "format")) && same(form, "\"f32-delta\"", 11);

    read_rows(data);
    read_global();
    for (size i = 0; i < width; i++) before[i] = model[i];
    double first = loss();
    for (double epoch = 0; epoch < epochs; epoch++) train(rate);

    put("{");
    put_text("round_id", variable("ROUND_ID"));
    put_text("job_id", variable("FL_JOB_ID"));
    put_text("proplet_id", variable("PROPLET_ID"));
    put("\"num_samples\":");
    put_count(height);
    put(",\"update_b64\":\"");
    put_update(changes);
    put("\",\"format\":\"");
    put(changes ? "f32-delta" : "json-f64");
    put("\",\"metrics\":{\"loss\":");
    put_number(first);
    put(",\"trained_loss\":");
    put_number(loss());
    put("}}\n");
    say(1, out, filled);
}
