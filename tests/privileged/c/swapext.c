/* Swaps the contents of two files of one owner on XFS; neither mtime nor ctime of them moves (threat B10).
 *
 *   swapext TARGET DONOR     `swapped`; both must have the same size
 */
#include "common.h"
#include <sys/ioctl.h>
#include <xfs/xfs.h>

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int target = open(argv[1], O_RDWR), donor = open(argv[2], O_RDWR);
    struct stat stat;
    if (target < 0 || donor < 0 || fstat(target, &stat)) die("open");
    struct xfs_swapext swap = {.sx_version = XFS_SX_VERSION, .sx_fdtarget = target, .sx_fdtmp = donor,
                               .sx_length = stat.st_size};
    swap.sx_stat.bs_ino = stat.st_ino;
    swap.sx_stat.bs_size = stat.st_size;
    swap.sx_stat.bs_mtime.tv_sec = stat.st_mtim.tv_sec;
    swap.sx_stat.bs_mtime.tv_nsec = stat.st_mtim.tv_nsec;
    swap.sx_stat.bs_ctime.tv_sec = stat.st_ctim.tv_sec;
    swap.sx_stat.bs_ctime.tv_nsec = stat.st_ctim.tv_nsec;
    /* The kernel refuses while pages of the target are mapped or cached and dirty. */
    fsync(target);
    fsync(donor);
    posix_fadvise(target, 0, 0, POSIX_FADV_DONTNEED);
    if (ioctl(target, XFS_IOC_SWAPEXT, &swap)) die("XFS_IOC_SWAPEXT");
    say("swapped");
    return 0;
}
