/* Text in and out, and a checksum. */

#include <stdarg.h>

#include "guest.h"

static void put_padded(const char *text, unsigned width, bool left, char pad)
{
    unsigned length = 0;
    while (text[length] != '\0')
        length++;
    for (unsigned column = length; !left && column < width; column++)
        uart_put(pad);
    while (*text != '\0')
        uart_put(*text++);
    for (unsigned column = length; left && column < width; column++)
        uart_put(' ');
}

static void put_number(unsigned value, unsigned base, unsigned width, bool left, char pad)
{
    char digits[11];
    char *digit = digits + sizeof digits;
    *--digit = '\0';
    do {
        *--digit = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    put_padded(digit, width, left, pad);
}

void print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    uart_hold();
    for (; *format != '\0'; format++) {
        if (*format != '%') {
            uart_put(*format);
            continue;
        }
        bool left = *++format == '-';
        if (left)
            format++;
        char pad = *format == '0' ? '0' : ' ';
        unsigned width = 0;
        for (; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + *format - '0';
        switch (*format) {
        case 's':
            put_padded(va_arg(arguments, const char *), width, left, ' ');
            break;
        case 'c':
            uart_put(va_arg(arguments, int));
            break;
        case 'u':
            put_number(va_arg(arguments, unsigned), 10, width, left, pad);
            break;
        case 'x':
            put_number(va_arg(arguments, unsigned), 16, width, left, pad);
            break;
        }
    }
    uart_release();
    va_end(arguments);
}

bool text_equal(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b)
        a++, b++;
    return *a == *b;
}

bool has_word(const char *text, const char *word)
{
    while (*text != '\0') {
        const char *expected = word;
        while (*expected != '\0' && *text == *expected)
            text++, expected++;
        if (*expected == '\0' && (*text == ' ' || *text == '\0'))
            return true;
        while (*text != '\0' && *text != ' ')
            text++;
        while (*text == ' ')
            text++;
    }
    return false;
}

char *next_word(char **text)
{
    while (**text == ' ')
        (*text)++;
    char *word = *text;
    while (**text != ' ' && **text != '\0')
        (*text)++;
    if (**text == ' ')
        *(*text)++ = '\0';
    return word;
}

bool next_number(char **text, unsigned *value)
{
    const char *word = next_word(text);
    unsigned base = 10;
    if (word[0] == '0' && word[1] == 'x') {
        base = 16;
        word += 2;
    }
    if (*word == '\0')
        return false;
    for (*value = 0; *word != '\0'; word++) {
        unsigned digit = base;
        if (*word >= '0' && *word <= '9')
            digit = *word - '0';
        else if (*word >= 'a' && *word <= 'f')
            digit = *word - 'a' + 10;
        if (digit >= base || *value > (0xFFFFFFFF - digit) / base)
            return false;
        *value = *value * base + digit;
    }
    return true;
}

/* Four bits at a time: bit by bit takes ten times as long on a CPU that is itself emulated. */
unsigned crc32(unsigned crc, const unsigned char *bytes, size_t size)
{
    static const unsigned of_nibble[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC,
        0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
        0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C,
    };
    crc = ~crc;
    while (size-- > 0) {
        crc ^= *bytes++;
        crc = crc >> 4 ^ of_nibble[crc & 15];
        crc = crc >> 4 ^ of_nibble[crc & 15];
    }
    return ~crc;
}
