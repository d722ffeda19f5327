/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk that goes bad: a FUSE file system over one folder, that passes everything through until
 * its file "faults" in that folder says otherwise. The file has one line:
 *   KIND FROM TO    for transfers that touch bytes FROM .. TO - 1 of any file
 * KIND: read-eio, write-eio, write-enospc, write-short (half is written, and said so),
 * write-torn (half is written, all is claimed), read-flip (one bit of what is read).
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int backing_fd; /* of the folder below; set once before FUSE starts */

struct fault {
    char kind[24];
    uint64_t from, to;
};

static bool fault_hits(const char *kind, off_t offset, size_t bytes)
{
    struct fault fault = {.kind = ""};
    char line[128] = "";
    int fd = openat(backing_fd, "faults", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, line, sizeof(line) - 1);
    close(fd);
    return n > 0 &&
           sscanf(line, "%23s %" SCNu64 " %" SCNu64, fault.kind, &fault.from, &fault.to) == 3 &&
           strcmp(fault.kind, kind) == 0 && (uint64_t)offset < fault.to &&
           (uint64_t)offset + bytes > fault.from;
}

/* Names are given with a slash in front; the root itself is ".". */
static const char *below(const char *path)
{
    return path[1] == '\0' ? "." : path + 1;
}

static int fs_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
    int result = fi != NULL ? fstat((int)fi->fh, st)
                            : fstatat(backing_fd, below(path), st, AT_SYMLINK_NOFOLLOW);
    return result == 0 ? 0 : -errno;
}

static int fs_open_any(const char *path, int flags, mode_t mode, struct fuse_file_info *fi)
{
    /* The transfers' alignment is the caller's business above, not ours below. */
    int fd = openat(backing_fd, below(path), (flags & ~(O_DIRECT | O_EXCL)) | O_CLOEXEC, mode);
    if (fd < 0)
        return -errno;
    fi->fh = (uint64_t)fd;
    fi->direct_io = 1;
    return 0;
}

static int fs_open(const char *path, struct fuse_file_info *fi)
{
    return fs_open_any(path, fi->flags, 0, fi);
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    return fs_open_any(path, fi->flags | O_CREAT, mode, fi);
}

static int fs_release(const char *path, struct fuse_file_info *fi)
{
    return close((int)fi->fh) == 0 ? 0 : -errno;
}

static int fs_read(const char *path, char *data, size_t bytes, off_t offset,
                   struct fuse_file_info *fi)
{
    if (fault_hits("read-eio", offset, bytes))
        return -EIO;
    ssize_t n = pread((int)fi->fh, data, bytes, offset);
    if (n < 0)
        return -errno;
    if (n > 0 && fault_hits("read-flip", offset, bytes))
        data[n / 2] ^= 1;
    return (int)n;
}

static int fs_write(const char *path, const char *data, size_t bytes, off_t offset,
                    struct fuse_file_info *fi)
{
    size_t given = bytes;
    bool torn = fault_hits("write-torn", offset, bytes);
    if (fault_hits("write-eio", offset, bytes))
        return -EIO;
    if (fault_hits("write-enospc", offset, bytes))
        return -ENOSPC;
    if (torn || fault_hits("write-short", offset, bytes))
        bytes = bytes > 4096 ? bytes / 2 / 4096 * 4096 : bytes;
    ssize_t n = pwrite((int)fi->fh, data, bytes, offset);
    if (n < 0)
        return -errno;
    return torn ? (int)given : (int)n;
}

static int fs_fsync(const char *path, int datasync, struct fuse_file_info *fi)
{
    return fdatasync((int)fi->fh) == 0 ? 0 : -errno;
}

static int fs_fallocate(const char *path, int mode, off_t offset, off_t bytes,
                        struct fuse_file_info *fi)
{
    return fallocate((int)fi->fh, mode, offset, bytes) == 0 ? 0 : -errno;
}

static int fs_truncate(const char *path, off_t bytes, struct fuse_file_info *fi)
{
    return fi != NULL && ftruncate((int)fi->fh, bytes) == 0 ? 0 : -EINVAL;
}

static int fs_unlink(const char *path)
{
    return unlinkat(backing_fd, below(path), 0) == 0 ? 0 : -errno;
}

static int fs_statfs(const char *path, struct statvfs *st)
{
    return fstatvfs(backing_fd, st) == 0 ? 0 : -errno;
}

static const struct fuse_operations operations = {
    .getattr = fs_getattr,
    .open = fs_open,
    .create = fs_create,
    .release = fs_release,
    .read = fs_read,
    .write = fs_write,
    .fsync = fs_fsync,
    .fallocate = fs_fallocate,
    .truncate = fs_truncate,
    .unlink = fs_unlink,
    .statfs = fs_statfs,
};

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: faultfs FOLDER MOUNTPOINT\n");
        return 2;
    }
    backing_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (backing_fd < 0) {
        fprintf(stderr, "faultfs: cannot open %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    char foreground[] = "-f";
    char *fuse_argv[] = {argv[0], foreground, argv[2], NULL};
    return fuse_main(3, fuse_argv, &operations, NULL);
}
