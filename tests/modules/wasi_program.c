/* A program as people write them, with a C library: it carries out the operations that its arguments name, in order, and
   prints a line for each: what was asked, and the answer or the name of the error. tests/runtime/test_guest_wasi_program.py. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4096 };
static char buffer[MOST + 1];

static const char *name_of(int error) {
#define NAME(e) case e: return #e;
    switch (error) {
        NAME(EACCES) NAME(EBADF) NAME(EEXIST) NAME(EFBIG) NAME(EINVAL) NAME(EIO) NAME(EISDIR) NAME(ELOOP) NAME(ENAMETOOLONG)
        NAME(ENOENT) NAME(ENOSPC) NAME(ENOSYS) NAME(ENOTCAPABLE) NAME(ENOTDIR) NAME(ENOTEMPTY) NAME(ENOTSUP) NAME(EPERM)
        NAME(EROFS) NAME(ESPIPE) NAME(EXDEV) NAME(EAGAIN) NAME(EILSEQ)
    default: return strerror(error);
    }
}

static void answer(const char *what, int result) {
    printf("%s: %s\n", what, result < 0 ? name_of(errno) : "ok");
}

static int put(const char *path, int flags, const char *text) {
    int fd = open(path, O_WRONLY | flags, 0644);
    if (fd < 0) return -1;
    ssize_t written = write(fd, text, strlen(text));
    int error = errno;
    if (close(fd) < 0) return -1;
    errno = error;
    return written == (ssize_t)strlen(text) ? 0 : -1;
}

static void show(const char *path, long offset) {
    int fd = open(path, O_RDONLY);
    ssize_t count = -1;
    if (fd >= 0 && (!offset || lseek(fd, offset, offset < 0 ? SEEK_END : SEEK_SET) >= 0)) count = read(fd, buffer, MOST);
    if (count < 0) printf("read: %s\n", name_of(errno));
    else printf("read: [%.*s]\n", (int)count, buffer);
    if (fd >= 0) close(fd);
}

static const char *type_of(mode_t mode) {
    return S_ISDIR(mode) ? "directory" : S_ISREG(mode) ? "file" : S_ISLNK(mode) ? "link" : S_ISCHR(mode) ? "character" : "other";
}

static void tell(const char *what, int result, const struct stat *found) {
    if (result < 0) printf("%s: %s\n", what, name_of(errno));
    else if (S_ISREG(found->st_mode)) printf("%s: file %lld\n", what, (long long)found->st_size);
    else printf("%s: %s\n", what, type_of(found->st_mode));
}

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(const char *path) {
    char *names[256];
    int count = 0;
    DIR *directory = opendir(path);
    if (!directory) {
        printf("list: %s\n", name_of(errno));
        return;
    }
    for (struct dirent *entry; count < 256 && (entry = readdir(directory));) names[count++] = strdup(entry->d_name);
    closedir(directory);
    qsort(names, count, sizeof *names, compare);
    printf("list:");
    for (int i = 0; i < count; i++) printf(" %s", names[i]);
    printf("\n");
}

static double now(clockid_t clock) {
    struct timespec at;
    return clock_gettime(clock, &at) ? -1 : at.tv_sec + at.tv_nsec / 1e9;
}

/* Milliseconds to wait at most, and what for: i is stdin, o stdout, a path a file to read. */
static void wait_for(const char *milliseconds, const char *what) {
    int fd = !strcmp(what, "i") ? 0 : !strcmp(what, "o") ? 1 : !strcmp(what, "-") ? -1 : open(what, O_RDONLY);
    struct pollfd wanted[2] = {{fd, fd == 1 ? POLLOUT : POLLIN, 0}, {1, POLLOUT, 0}};
    double began = now(CLOCK_MONOTONIC);
    int ready = fd < 0 ? usleep(atoi(milliseconds) * 1000) : poll(wanted, fd == 1 ? 1 : 2, atoi(milliseconds));
    double passed = (now(CLOCK_MONOTONIC) - began) * 1000;
    printf("poll: %d%s%s %s\n", ready, wanted[0].revents & POLLIN ? " in" : "", wanted[0].revents & POLLOUT ? " out" : "",
           passed + 1 < atoi(milliseconds) ? "at once" : "after the time");
}

static void copy_input(void) {
    size_t total = 0, count;
    while ((count = fread(buffer, 1, MOST, stdin)) > 0) {
        total += count;
        if (total <= 64) fwrite(buffer, 1, count, stdout);
    }
    printf("input: %zu\n", total);
}

static void clocks(void) {
    struct timespec realtime, monotonic;
    double first = now(CLOCK_MONOTONIC);
    int known = !clock_getres(CLOCK_REALTIME, &realtime) && !clock_getres(CLOCK_MONOTONIC, &monotonic);
    printf("clock: %d %d %d\n", now(CLOCK_REALTIME) > 1.7e9, now(CLOCK_MONOTONIC) >= first, known && monotonic.tv_sec == 0);
}

static void chance(void) {
    unsigned char one[16] = {0}, two[16] = {0};
    int got = getentropy(one, sizeof one) || getentropy(two, sizeof two);
    printf("random: %d %d\n", got, memcmp(one, two, sizeof one) != 0);
}

static int run(char **word) {
    struct stat found;
#define IS(text) if (!strcmp(*word, text))
    IS("args") { for (char **rest = word + 1; *rest; rest++) printf("argument: %s\n", *rest); while (word[1]) word++; return -1; }
    IS("env") { const char *value = getenv(word[1]); printf("%s=%s\n", word[1], value ? value : "(none)"); return 1; }
    IS("input") { copy_input(); return 0; }
    IS("say") { fprintf(stderr, "%s\n", word[1]); return 1; }
    IS("exit") { fflush(stdout); exit(atoi(word[1])); }
    IS("abort") { fflush(stdout); abort(); }
    IS("return") { return -2; }
    IS("clock") { clocks(); return 0; }
    IS("random") { chance(); return 0; }
    IS("poll") { fflush(stdout); wait_for(word[1], word[2]); return 2; }
    IS("write") { answer("write", put(word[1], O_CREAT | O_TRUNC, word[2])); return 2; }
    IS("append") { answer("append", put(word[1], O_APPEND, word[2])); return 2; }
    IS("create") { answer("create", put(word[1], O_CREAT | O_EXCL, "")); return 1; }
    IS("read") { show(word[1], 0); return 1; }
    IS("from") { show(word[2], atol(word[1])); return 2; }
    IS("truncate") { answer("truncate", truncate(word[2], atol(word[1]))); return 2; }
    IS("stat") { int result = stat(word[1], &found); tell("stat", result, &found); return 1; }
    IS("lstat") { int result = lstat(word[1], &found); tell("lstat", result, &found); return 1; }
    IS("mkdir") { answer("mkdir", mkdir(word[1], 0755)); return 1; }
    IS("rmdir") { answer("rmdir", rmdir(word[1])); return 1; }
    IS("unlink") { answer("unlink", unlink(word[1])); return 1; }
    IS("rename") { answer("rename", rename(word[1], word[2])); return 2; }
    IS("link") { answer("link", link(word[1], word[2])); return 2; }
    IS("symlink") { answer("symlink", symlink(word[1], word[2])); return 2; }
    IS("readlink") {
        ssize_t length = readlink(word[1], buffer, MOST);
        if (length < 0) answer("readlink", -1); else printf("readlink: %.*s\n", (int)length, buffer);
        return 1;
    }
    IS("touch") {
        struct timespec times[2] = {{1000000000, 0}, {1234567890, 0}};
        answer("touch", utimensat(AT_FDCWD, word[1], times, 0));
        return 1;
    }
    IS("mtime") { int result = stat(word[1], &found); printf("mtime: %lld\n", result ? -1LL : (long long)found.st_mtime); return 1; }
    IS("list") { list(word[1]); return 1; }
    IS("seekpipe") { answer("seekpipe", lseek(atoi(word[1]), 0, SEEK_CUR) < 0 ? -1 : 0); return 1; }
    IS("close") { answer("close", close(atoi(word[1]))); return 1; }
    IS("fill") {
        size_t bytes = atol(word[1]) << 20;
        volatile char *memory = malloc(bytes);  /* or the compiler does without it */
        for (size_t at = 0; memory && at < bytes; at += MOST) memory[at] = 1;
        printf("fill: %s\n", memory ? "ok" : "refused");
        return 1;
    }
    printf("%s?\n", *word);
    return 0;
}

int main(int count, char **words) {
    for (int at = 1; at < count; at++) {
        int used = run(words + at);
        if (used == -1) return 0;
        if (used == -2) return 3;
        at += used;
    }
    return 0;
}
