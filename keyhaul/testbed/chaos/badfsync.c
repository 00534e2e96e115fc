/* Makes fsync and fdatasync fail with EIO while the file $KEYHAUL_BAD_FSYNC/PID exists. LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int bad(void) {
    const char *folder = getenv("KEYHAUL_BAD_FSYNC");
    char path[4096];
    if (folder == NULL || snprintf(path, sizeof path, "%s/%d", folder, (int)getpid()) >= (int)sizeof path) return 0;
    return access(path, F_OK) == 0;
}

int fsync(int fd) {
    static int (*real)(int);
    if (bad()) { errno = EIO; return -1; }
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (bad()) { errno = EIO; return -1; }
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
