/* The block device, by interrupt. Its process may end at any time and come back; the next command then sets it up. */

#include <machine.h>

enum { BASE = DISK_BASE, SECTOR = BASE, STATUS = BASE + 4, COMMAND = BASE + 4, ERROR = BASE + 5 };
enum { INTERRUPT = BASE + 6, CONTROL = BASE + 7, DATA = BASE + 8, CAPACITY = BASE + 12 };
enum { STATUS_BUSY = 1, STATUS_DATA = 2, STATUS_ERROR = 4, STATUS_UNUSED = 0xF8 };
enum { READ = 1, WRITE = 2, FLUSH = 3 };
enum { INTERRUPT_PENDING = 1, CONTROL_INTERRUPT = 1, CONTROL_RESET = 2 };

#define PATIENCE 1000 /* ms */

static const char *const errors[] = {"no error", "no such sector", "the file failed", "no such command", "read-only"};
static const char none[] = "none";
static const char no_answer[] = "no answer";

static volatile bool done;
static bool ready;

/* Whether this is still the device that reset() set up. A new one has its interrupt disabled, and none reads ffh. */
static bool is_there(void)
{
    return inb(CONTROL) == CONTROL_INTERRUPT;
}

static bool reset(void)
{
    outb(CONTROL, CONTROL_RESET);
    outb(INTERRUPT, INTERRUPT_PENDING);
    outb(CONTROL, CONTROL_INTERRUPT);
    ready = is_there() && !(inb(STATUS) & STATUS_UNUSED);
    return ready;
}

static const char *fail(void)
{
    ready = false;
    return no_answer;
}

/* Checks for a device and sets it up. A device that ended after the last command is distinguished from none at all. */
static const char *find(void)
{
    bool was_ready = ready;
    if ((ready && is_there()) || reset())
        return NULL;
    return was_ready ? no_answer : none;
}

static const char *begin(unsigned char command, unsigned sector)
{
    const char *error = find();
    if (error != NULL)
        return error;
    done = false;
    outl(SECTOR, sector);
    outb(COMMAND, command);
    return NULL;
}

/* Waits for the interrupt. Each tick wakes it too, to check whether the device is still there. */
static const char *finish(void)
{
    unsigned deadline = milliseconds() + PATIENCE;
    WAIT_UNTIL(done || timer_due(deadline) || !is_there());
    unsigned char status = inb(STATUS);
    if (!done || status & (STATUS_UNUSED | STATUS_BUSY))
        return fail();
    if (!(status & STATUS_ERROR))
        return NULL;
    unsigned char error = inb(ERROR);
    return error < sizeof errors / sizeof errors[0] ? errors[error] : fail();
}

const char *disk_capacity(unsigned *sectors)
{
    const char *error = find();
    if (error != NULL)
        return error;
    *sectors = inl(CAPACITY);
    return is_there() ? NULL : fail();
}

const char *disk_read(unsigned sector, void *data)
{
    const char *error = begin(READ, sector);
    if (error == NULL)
        error = finish();
    if (error != NULL)
        return error;
    insl(DATA, data, SECTOR_SIZE / 4);
    return is_there() ? NULL : fail();
}

const char *disk_write(unsigned sector, const void *data)
{
    const char *error = begin(WRITE, sector);
    if (error != NULL)
        return error;
    if (inb(STATUS) == STATUS_DATA) /* otherwise it was refused, which finish() detects */
        outsl(DATA, data, SECTOR_SIZE / 4);
    return finish();
}

const char *disk_flush(void)
{
    const char *error = begin(FLUSH, 0);
    return error != NULL ? error : finish();
}

/* The line is level-triggered: it must be low before the EOI, or the interrupt comes again. */
void disk_interrupt(void)
{
    if (inb(INTERRUPT) != INTERRUPT_PENDING)
        return;
    outb(INTERRUPT, INTERRUPT_PENDING);
    done = true;
}
