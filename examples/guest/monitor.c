/* The monitor: executes command lines from the serial port or the keyboard. */

#include <machine.h>

#define BACKSPACE 0x08
#define DELETE 0x7F
#define CTRL_U 0x15

bool read_line(char line[LINE_SIZE], bool from_serial)
{
    static bool after_return; /* a terminal that ends lines in CR LF ends one, and not two */
    for (unsigned length = 0;;) {
        WAIT_UNTIL((from_serial && !ring_empty(&uart_input)) || !ring_empty(&keyboard_input) || uart_break);
        if (uart_break)
            return false;
        bool serial = from_serial && !ring_empty(&uart_input);
        char character = ring_get(serial ? &uart_input : &keyboard_input);
        bool skip = after_return && character == '\n';
        after_return = serial && character == '\r';
        if (skip)
            continue;
        if (character == '\r' || character == '\n') {
            line[length] = '\0';
            print("\n");
            return true;
        }
        if (character == BACKSPACE || character == DELETE || character == CTRL_U) {
            unsigned keep = character == CTRL_U || length == 0 ? 0 : length - 1;
            for (; length > keep; length--)
                print("\b \b");
        } else if (character >= ' ' && length < LINE_SIZE - 1) {
            line[length++] = character;
            uart_put(character);
        }
    }
}

bool command_uptime(char *arguments)
{
    (void)arguments;
    unsigned now = milliseconds();
    print("%u.%03u s\n", now / 1000, now % 1000);
    return true;
}

bool command_echo(char *arguments)
{
    print("%s\n", arguments);
    return true;
}

bool command_help(char *arguments)
{
    (void)arguments;
    for (const struct command *command = commands; command->name != NULL; command++)
        print("%-7s %-14s %s\n", command->name, command->arguments, command->help);
    return true;
}

static void execute(char *line)
{
    const char *name = next_word(&line);
    if (*name == '\0')
        return;
    for (const struct command *command = commands; command->name != NULL; command++) {
        if (!text_equal(name, command->name))
            continue;
        if (!command->run(line))
            print("usage: %s %s\n", command->name, command->arguments);
        return;
    }
    print("%s: no such command; `help` lists them\n", name);
}

void monitor(void)
{
    for (;;) {
        char line[LINE_SIZE];
        print("> ");
        if (read_line(line, true))
            execute(line);
        if (uart_break) {
            uart_break = false;
            print("^C\n");
        }
    }
}
