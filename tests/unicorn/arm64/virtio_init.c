/* The first process of a guest with a virtio disk and console: loads the drivers, talks to the virtio console, reads and
 * writes the disk past the page cache, and says on the serial console what it finds. System calls alone; nothing is
 * linked.
 *
 * The disk's sector n has n in each of its words, 4 bytes each. */

#include <stddef.h>
#include <stdint.h>

enum {
    MOUNT = 40, OPENAT = 56, CLOSE = 57, READ = 63, WRITE = 64, PREAD = 67, PWRITE = 68, FSYNC = 82, NANOSLEEP = 101,
    REBOOT = 142, FINIT_MODULE = 273,
};
enum { AT_FDCWD = -100, O_RDWR = 2, O_DIRECT = 0200000, BLOCK = 4096, SECTOR = 512, SECTORS = 2048, READS = 300 };

static long call(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}

static char block[BLOCK] __attribute__((aligned(BLOCK)));

static void say(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    call(WRITE, 1, (long)text, length, 0, 0);
}

static void say_number(const char *what, long number)
{
    char digits[24];
    char *at = digits + sizeof digits - 1;
    unsigned long left = number < 0 ? -number : number;
    *at = 0;
    do
        *--at = '0' + left % 10;
    while (left /= 10);
    if (number < 0)
        *--at = '-';
    say(what);
    say(at);
    say("\n");
}

static long open_file(const char *path, long flags)
{
    return call(OPENAT, AT_FDCWD, (long)path, flags, 0, 0);
}

static void load(const char *module)
{
    long file = open_file(module, 0);
    long result = file < 0 ? file : call(FINIT_MODULE, file, (long)"", 0, 0, 0);
    if (result < 0)
        say_number(module, result);
}

static int is_of_sector(long sector, const char *bytes)
{
    const uint32_t *words = (const uint32_t *)bytes;
    for (int word = 0; word < SECTOR / 4; word++)
        if (words[word] != (uint32_t)sector)
            return 0;
    return 1;
}

static void show(const char *path)
{
    long length, file = open_file(path, 0);
    while ((length = call(READ, file, (long)block, BLOCK, 0, 0)) > 0)
        call(WRITE, 1, (long)block, length, 0, 0);
    call(CLOSE, file, 0, 0, 0, 0);
}

/* Asks on the virtio console, and repeats the answer. */
static void talk(void)
{
    static const char question[] = "who is there?\n";
    long length, console = open_file("/dev/hvc0", O_RDWR);
    if (console < 0) {
        say_number("init: no virtio console: ", console);
        return;
    }
    call(WRITE, console, (long)question, sizeof question - 1, 0, 0);
    length = call(READ, console, (long)block, SECTOR, 0, 0);
    say("init: heard ");
    call(WRITE, 1, (long)block, length, 0, 0);
    call(CLOSE, console, 0, 0, 0, 0);
}

__attribute__((noreturn)) void _start(void)
{
    const int64_t pause[2] = {0, 50000000};
    long disk, wrong = 0;
    call(MOUNT, (long)"proc", (long)"/proc", (long)"proc", 0, 0);
    call(MOUNT, (long)"dev", (long)"/dev", (long)"devtmpfs", 0, 0);
    load("/virtio_mmio.ko");
    load("/virtio_blk.ko");
    while ((disk = open_file("/dev/vda", O_RDWR | O_DIRECT)) < 0)
        call(NANOSLEEP, (long)pause, 0, 0, 0, 0);
    talk();
    say("init: reading\n");
    for (long number = 0; number < READS; number++) {
        long sector = number * 8 * 7 % SECTORS;
        if (call(PREAD, disk, (long)block, BLOCK, sector * SECTOR, 0) != BLOCK)
            wrong++;
        else
            for (long each = 0; each < 8; each++)
                wrong += !is_of_sector(sector + each, block + each * SECTOR);
        if (number == READS / 3)
            say("init: a third is read\n");
    }
    say_number("init: wrong sectors: ", wrong);
    for (long byte = 0; byte < BLOCK; byte++)
        block[byte] = 'w';
    say_number("init: written: ", call(PWRITE, disk, (long)block, BLOCK, BLOCK, 0));
    say_number("init: flushed: ", call(FSYNC, disk, 0, 0, 0, 0));
    show("/proc/interrupts");
    call(REBOOT, 0xfee1dead, 672274793, 0x4321fedc, 0, 0);
    for (;;)
        ;
}
