/* SPDX-License-Identifier: Apache-2.0 */
/* The disks of the config: file system, O_DIRECT, alignment, room, kind. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "doctor.h"
#include "kvt/units.h"
#include "kvt/util.h"
#include "output.h"

#define DISKS_MAX  16
#define META_BYTES (256 * KVT_MIB) /* room that the metadata wants beside the store */
#define FUSE_MAGIC 0x65735546
#define XFS_MAGIC  0x58465342
#define ZFS_MAGIC  0x2fc12fc1
#define PATH_BYTES 4096

struct disk {
    const char *path;
    uint64_t bytes;          /* to use */
    char folder[PATH_BYTES]; /* that path is in */
    bool exists;
    struct stat st; /* of path, or of the folder */
};

static const struct {
    long magic;
    const char *name, *remedy; /* NULL: fit for a store */
} file_systems[] = {
    {EXT4_SUPER_MAGIC, "ext4", NULL},
    {XFS_MAGIC, "xfs", NULL},
    {BTRFS_SUPER_MAGIC, "btrfs", "use ext4 or xfs: copy on write scatters a store"},
    {ZFS_MAGIC, "zfs", "use ext4 or xfs: copy on write scatters a store"},
    {TMPFS_MAGIC, "tmpfs", "name a disk: this is memory, which host.bytes uses better"},
    {OVERLAYFS_SUPER_MAGIC, "overlayfs", "mount a disk there (hostPath, volume)"},
    {NFS_SUPER_MAGIC, "nfs", "name a local disk"},
    {FUSE_MAGIC, "fuse", "name a local disk"},
};

static void check_file_system(struct doctor *d, const struct disk *disk)
{
    struct statfs fs;
    if (statfs(disk->exists ? disk->path : disk->folder, &fs) != 0)
        return;
    for (size_t i = 0; i < KVT_ARRAY_LEN(file_systems); i++) {
        if (fs.f_type != file_systems[i].magic)
            continue;
        if (file_systems[i].remedy != NULL)
            doctor_add(d, DOCTOR_WARN, file_systems[i].remedy, "%s is on %s", disk->path,
                       file_systems[i].name);
        else
            doctor_add(d, DOCTOR_OK, "", "%s is on %s", disk->path, file_systems[i].name);
        return;
    }
    doctor_add(d, DOCTOR_NOTE, "ext4 and xfs are known to be good",
               "%s is on a file system of type %#lx", disk->path, (unsigned long)fs.f_type);
}

/* What the store does: read 4 KiB past the page cache. Where there is no file yet a nameless one
 * in the folder tells whether it could. */
static void check_direct(struct doctor *d, const struct disk *disk)
{
    int fd = disk->exists ? open(disk->path, O_RDONLY | O_DIRECT | O_CLOEXEC)
                          : open(disk->folder, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    void *page = NULL;
    if (fd < 0) {
        bool denied = errno == EACCES || errno == EPERM || errno == EROFS;
        doctor_add(d, DOCTOR_FAIL,
                   denied ? "run this as the agent's user; chown the folder to it"
                          : "name a path on a disk with ext4 or xfs",
                   "%s cannot be opened with O_DIRECT: %s", disk->path, strerror(errno));
        return;
    }
    bool ok = posix_memalign(&page, KVT_PAGE_BYTES, KVT_PAGE_BYTES) == 0;
    if (ok) {
        memset(page, 0, KVT_PAGE_BYTES);
        ok = disk->exists ? pread(fd, page, KVT_PAGE_BYTES, 0) >= 0
                          : pwrite(fd, page, KVT_PAGE_BYTES, 0) == (ssize_t)KVT_PAGE_BYTES;
    }
    if (ok)
        doctor_add(d, DOCTOR_OK, "", "%s takes O_DIRECT in units of 4 KiB", disk->path);
    else
        doctor_add(d, DOCTOR_FAIL, "use a disk with sectors of at most 4 KiB, and look into dmesg",
                   "%s does not do 4 KiB with O_DIRECT: %s", disk->path, strerror(errno));
    free(page);
    close(fd);
}

/* The queue of the disk below a file or partition, in /sys. */
static bool queue_number(const struct doctor *d, const struct disk *disk, const char *name,
                         uint64_t *value_p)
{
    char path[128];
    dev_t dev = S_ISBLK(disk->st.st_mode) ? disk->st.st_rdev : disk->st.st_dev;
    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/queue/%s", major(dev), minor(dev), name);
    if (doctor_number(d, path, value_p))
        return true;
    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../queue/%s", major(dev), minor(dev), name);
    return doctor_number(d, path, value_p);
}

static void check_kind(struct doctor *d, const struct disk *disk)
{
    uint64_t rotational = 0, sector = 0;
    if (queue_number(d, disk, "rotational", &rotational) && rotational != 0)
        doctor_add(d, DOCTOR_WARN,
                   "name an NVMe disk; a spinning one loses to computing the KV again",
                   "%s is on a disk that says it spins", disk->path);
    if (queue_number(d, disk, "logical_block_size", &sector) && sector > KVT_PAGE_BYTES)
        doctor_add(d, DOCTOR_FAIL, "use a disk with sectors of at most 4 KiB",
                   "%s is on a disk with sectors of %" PRIu64 " bytes", disk->path, sector);
}

static void check_room(struct doctor *d, const struct disk *disk)
{
    struct statvfs fs;
    char need_text[KVCTL_TEXT_BYTES], free_text[KVCTL_TEXT_BYTES];
    uint64_t room = 0, need = disk->bytes;
    if (S_ISBLK(disk->st.st_mode)) {
        int fd = open(disk->path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || ioctl(fd, BLKGETSIZE64, &room) != 0)
            room = UINT64_MAX;
        if (fd >= 0)
            close(fd);
    } else {
        if (statvfs(disk->folder, &fs) != 0)
            return;
        uint64_t there = disk->exists ? (uint64_t)disk->st.st_blocks * 512 : 0;
        room = (uint64_t)fs.f_bavail * fs.f_frsize;
        need = need > there ? need - there : 0;
        need += META_BYTES;
    }
    kvctl_bytes_text((double)need, need_text);
    kvctl_bytes_text((double)room, free_text);
    if (room >= need)
        doctor_add(d, DOCTOR_OK, "", "%s needs %s and has %s", disk->path, need_text, free_text);
    else
        doctor_add(d, DOCTOR_FAIL,
                   "free room, or lower nvme.bytes (a store keeps what fits of its chunks)",
                   "%s needs %s (metadata included) and has %s", disk->path, need_text, free_text);
}

static void check_disk(struct doctor *d, struct disk *disk)
{
    snprintf(disk->folder, sizeof(disk->folder), "%s", disk->path);
    char *slash = strrchr(disk->folder, '/');
    if (slash == NULL)
        snprintf(disk->folder, sizeof(disk->folder), ".");
    else
        slash[slash == disk->folder] = '\0';
    disk->exists = stat(disk->path, &disk->st) == 0;
    if (!disk->exists && stat(disk->folder, &disk->st) != 0) {
        doctor_add(d, DOCTOR_FAIL, "make the folder and give it to the agent's user", "%s: %s: %s",
                   disk->path, disk->folder, strerror(errno));
        return;
    }
    if (disk->exists && !S_ISREG(disk->st.st_mode) && !S_ISBLK(disk->st.st_mode)) {
        doctor_add(d, DOCTOR_FAIL, "name a file in it, or a block device",
                   "%s is neither a file nor a block device", disk->path);
        return;
    }
    if (!S_ISBLK(disk->st.st_mode))
        check_file_system(d, disk);
    check_direct(d, disk);
    check_kind(d, disk);
    check_room(d, disk);
}

static void check_disks(struct doctor *d)
{
    char key[64];
    unsigned n = 0;
    for (; n < DISKS_MAX; n++) {
        struct disk disk = {.path = ""};
        snprintf(key, sizeof(key), "nvme.disks.%u.path", n);
        disk.path = doctor_config_text(d, key);
        if (disk.path[0] == '\0')
            break;
        snprintf(key, sizeof(key), "nvme.disks.%u.bytes", n);
        disk.bytes = doctor_config_bytes(d, key);
        check_disk(d, &disk);
    }
    if (n == 0)
        doctor_add(d, DOCTOR_NOTE, "set nvme.path and nvme.bytes",
                   "the config names no disk: chunks live in host memory alone");
}

const struct doctor_check doctor_disk_checks[] = {{"disk", check_disks}, {NULL, NULL}};
