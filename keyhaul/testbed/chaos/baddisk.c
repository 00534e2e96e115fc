/* A disk that fails at command. LD_PRELOAD. While $KEYHAUL_BAD_DISK/PID exists, its first byte says how:
 * F fsync and fdatasync fail with EIO; S they take SLOW more microseconds; N writing to a file fails with ENOSPC. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SLOW = 200000 };

static char bad(void) {
    const char *folder = getenv("KEYHAUL_BAD_DISK");
    char path[4096], how = 0;
    int saved = errno, fd;
    if (folder == NULL || snprintf(path, sizeof path, "%s/%d", folder, (int)getpid()) >= (int)sizeof path) return 0;
    if ((fd = open(path, O_RDONLY | O_CLOEXEC)) >= 0) {
        if (read(fd, &how, 1) != 1) how = 0;
        close(fd);
    }
    errno = saved;
    return how;
}

static int full(int fd) {
    struct stat file;
    if (bad() != 'N' || fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) return 0;
    errno = ENOSPC;
    return 1;
}

static int flushed(const char *name, int fd) {
    int (*real)(int);
    char how = bad();
    if (how == 'F') { errno = EIO; return -1; }
    if (how == 'S') usleep(SLOW);
    *(void **)&real = dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return flushed("fsync", fd); }
int fdatasync(int fd) { return flushed("fdatasync", fd); }

#define WRITER(type, name, parameters, arguments) \
    type name parameters { \
        static type (*real) parameters; \
        if (full(fd)) return -1; \
        if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, #name); \
        return real arguments; \
    }

WRITER(ssize_t, write, (int fd, const void *what, size_t size), (fd, what, size))
WRITER(ssize_t, writev, (int fd, const struct iovec *what, int count), (fd, what, count))
WRITER(ssize_t, pwrite, (int fd, const void *what, size_t size, off_t at), (fd, what, size, at))
WRITER(ssize_t, pwrite64, (int fd, const void *what, size_t size, off64_t at), (fd, what, size, at))
WRITER(int, ftruncate, (int fd, off_t size), (fd, size))
WRITER(int, ftruncate64, (int fd, off64_t size), (fd, size))
WRITER(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
WRITER(int, posix_fallocate, (int fd, off_t at, off_t size), (fd, at, size))
