/* A PS/2 keyboard with US keys behind an i8042, which translates its scan codes to set 1. */

#include "machine.h"

/* IBM PS/2 Hardware Interface Technical Reference, keyboard and auxiliary device controller. */
enum { DATA = 0x60, STATUS = 0x64, COMMAND = 0x64 };
enum { STATUS_OUTPUT_FULL = 1, STATUS_INPUT_FULL = 2, STATUS_AUXILIARY = 0x20, STATUS_ABSENT = 0xFF };
enum { READ_CONFIGURATION = 0x20, WRITE_CONFIGURATION = 0x60, DISABLE_AUXILIARY = 0xA7, DISABLE_KEYBOARD = 0xAD };
enum { ENABLE_KEYBOARD = 0xAE, KEYBOARD_ENABLE_SCANNING = 0xF4 };
enum { CONFIGURATION_INTERRUPT = 1, CONFIGURATION_NO_KEYBOARD = 0x10, CONFIGURATION_TRANSLATE = 0x40 };

#define PATIENCE 1000 /* reads of the status */

/* Scan codes, set 1. Bit 7 is set when a key is released. */
enum { SHIFT_LEFT = 0x2A, SHIFT_RIGHT = 0x36, CAPS_LOCK = 0x3A, EXTENDED = 0xE0, RELEASED = 0x80 };

static const char plain[] = "\0\033"
                            "1234567890-=\b\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
static const char shifted[] = "\0\033"
                              "!@#$%^&*()_+\b\tQWERTYUIOP{}\n\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";

struct ring keyboard_input;
static bool shift_left, shift_right, caps_lock, extended;

/* Waits until the status has these bits as wanted. */
static bool wait_status(unsigned char mask, unsigned char wanted)
{
    for (int looks = 0; looks < PATIENCE; looks++) {
        unsigned char status = inb(STATUS);
        if (status == STATUS_ABSENT)
            return false;
        if ((status & mask) == wanted)
            return true;
    }
    return false;
}

static void put(unsigned short port, unsigned char value)
{
    if (wait_status(STATUS_INPUT_FULL, 0))
        outb(port, value);
}

/* Harmless without a keyboard. Call with interrupts off. */
void keyboard_init(void)
{
    put(COMMAND, DISABLE_KEYBOARD);
    put(COMMAND, DISABLE_AUXILIARY);
    for (int bytes = 0; bytes < 16 && (inb(STATUS) & STATUS_OUTPUT_FULL); bytes++)
        inb(DATA);
    put(COMMAND, READ_CONFIGURATION);
    if (!wait_status(STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL))
        return;
    unsigned char configuration = inb(DATA) & ~CONFIGURATION_NO_KEYBOARD;
    put(COMMAND, WRITE_CONFIGURATION);
    put(DATA, configuration | CONFIGURATION_INTERRUPT | CONFIGURATION_TRANSLATE);
    put(COMMAND, ENABLE_KEYBOARD);
    put(DATA, KEYBOARD_ENABLE_SCANNING); /* its answer comes as an interrupt, and is not a key */
    shift_left = shift_right = extended = false;
}

static void scan_code(unsigned char code)
{
    bool pressed = !(code & RELEASED), was_extended = extended;
    unsigned char key = code & ~RELEASED;
    extended = code == EXTENDED;
    if (extended)
        return;
    if (was_extended) {
        if (key != 0x1C && key != 0x35) /* of those keys only the keypad's Enter and / have characters */
            return;
    } else if (key == SHIFT_LEFT) {
        shift_left = pressed;
    } else if (key == SHIFT_RIGHT) {
        shift_right = pressed;
    } else if (key == CAPS_LOCK) {
        caps_lock ^= pressed;
    }
    if (!pressed || key >= sizeof plain)
        return;
    bool shift = !was_extended && (shift_left || shift_right);
    char character = plain[key];
    if (shift != (caps_lock && character >= 'a' && character <= 'z'))
        character = shifted[key];
    if (character != '\0')
        ring_put(&keyboard_input, character);
}

void keyboard_interrupt(void)
{
    for (int bytes = 0; bytes < 16; bytes++) {
        unsigned char status = inb(STATUS);
        if (status == STATUS_ABSENT || !(status & STATUS_OUTPUT_FULL))
            return;
        unsigned char byte = inb(DATA);
        if (!(status & STATUS_AUXILIARY))
            scan_code(byte);
    }
}
