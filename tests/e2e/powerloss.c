/* A disk that keeps only what was flushed: whenever a file is flushed, its contents go to $KEYHAUL_SHADOW,
 * whole, under the same name. After the process was killed, that folder is what a power loss leaves. LD_PRELOAD.
 * A name that does not begin with / is a folder beside the file; where there is none, nothing is kept. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void keep(int fd) {
    const char *folder = getenv("KEYHAUL_SHADOW"), *name;
    char link[64], path[4096], place[8192], fresh[12288], kept[12288], block[65536];
    ssize_t got, length;
    off_t at = 0;
    int out;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (folder == NULL || (length = readlink(link, path, sizeof path - 1)) <= 0) return;
    path[length] = 0;
    if ((name = strrchr(path, '/')) == NULL) return;
    int beside = folder[0] == '/' ? 0 : (int)(name - path) + 1;
    snprintf(place, sizeof place, "%.*s%s", beside, path, folder);
    if (beside && access(place, W_OK) != 0) return;
    if (snprintf(kept, sizeof kept, "%s%s", place, name) >= (int)sizeof kept) abort();
    if (snprintf(fresh, sizeof fresh, "%s%s.%d", place, name, (int)gettid()) >= (int)sizeof fresh) abort();
    if ((out = open(fresh, O_WRONLY | O_CREAT | O_TRUNC, 0600)) < 0) abort();
    while ((got = pread(fd, block, sizeof block, at)) > 0) {
        if (write(out, block, (size_t)got) != got) abort();
        at += got;
    }
    close(out);
    if (got == 0) rename(fresh, kept); else unlink(fresh); /* a folder cannot be read, and need not be kept */
}

int fsync(int fd) {
    static int (*real)(int);
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    int result = real(fd);
    if (result == 0) keep(fd);
    return result;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
    int result = real(fd);
    if (result == 0) keep(fd);
    return result;
}

/* A name that a file gets is taken for flushed with it. */
int link(const char *old, const char *new) {
    static int (*real)(const char *, const char *);
    const char *folder = getenv("KEYHAUL_SHADOW"), *from = strrchr(old, '/'), *to = strrchr(new, '/');
    char there[12288], then[12288];
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, "link");
    int result = real(old, new);
    if (result != 0 || folder == NULL || from == NULL || to == NULL) return result;
    int beside = folder[0] == '/' ? 0 : (int)(from - old) + 1;
    if (snprintf(there, sizeof there, "%.*s%s%s", beside, old, folder, from) >= (int)sizeof there) abort();
    if (snprintf(then, sizeof then, "%.*s%s%s", beside, old, folder, to) >= (int)sizeof then) abort();
    if (access(there, R_OK) == 0) real(there, then);
    return result;
}
