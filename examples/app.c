/* A whole app with sd-bus: all of org.bellwire.Push(7) that an app needs.
 *
 *     cc -Wall -Wextra -Werror -o app app.c $(pkg-config --cflags --libs libsystemd)
 *     ./app APP-ID            registers, takes what came while it was away, then its messages
 *     ./app APP-ID --leave    deregisters: the regId is dead for good
 *
 * Its agent is bellwired on the session bus. Needs Debian's libsystemd-dev and pkg-config.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

static sd_bus *bus;
static const char *app;
static bool leave, daemon_is_new;

/* Ends the program if a step failed. */
static void must(int result, const char *step)
{
    if (result < 0) {
        fprintf(stderr, "app: %s: %s\n", step, strerror(-result));
        exit(1);
    }
}

/* Calls a method of Push1 and returns the answer, or ends the program with the daemon's reason. */
static sd_bus_message *call(const char *method, const char *types, ...)
{
    sd_bus_error error = SD_BUS_ERROR_NULL;
    sd_bus_message *answer = NULL;
    va_list arguments;

    va_start(arguments, types);
    int r = sd_bus_call_methodv(bus, "org.bellwire.Push", "/org/bellwire/Push", "org.bellwire.Push1", method,
                                &error, &answer, types, arguments);
    va_end(arguments);
    if (sd_bus_error_is_set(&error)) {
        fprintf(stderr, "app: %s: %s\n", error.name, error.message);
        exit(1);
    }
    must(r, method);
    return answer;
}

/* Prints all values that are left of the message, or of the container that has been entered: texts,
 * numbers, booleans, bytes (as hex), and dictionaries a{sv}. */
static int print_values(sd_bus_message *m, const char *before)
{
    union { const char *s; int64_t x; uint32_t u; int b; } value;
    const char *contents, *key;
    const unsigned char *bytes;
    size_t size;
    char type;
    int r;

    while ((r = sd_bus_message_peek_type(m, &type, &contents)) > 0) {
        if (type == 'a' && strcmp(contents, "y") == 0) {
            if ((r = sd_bus_message_read_array(m, 'y', (const void **) &bytes, &size)) < 0)
                return r;
            printf("%s", before);
            for (size_t i = 0; i < size; i++)
                printf("%02x", bytes[i]);
        } else if (strchr("aev", type)) { /* an array, an entry of a dictionary, a variant */
            if ((r = sd_bus_message_enter_container(m, type, contents)) < 0)
                return r;
            if (type == 'e') {
                if ((r = sd_bus_message_read_basic(m, 's', &key)) < 0)
                    return r;
                printf(" %s=", key);
            }
            if ((r = print_values(m, type == 'e' ? "" : before)) < 0 || (r = sd_bus_message_exit_container(m)) < 0)
                return r;
        } else if (strchr("sxub", type)) {
            if ((r = sd_bus_message_read_basic(m, type, &value)) < 0)
                return r;
            switch (type) {
            case 's': printf("%s%s", before, value.s); break;
            case 'x': printf("%s%" PRId64, before, value.x); break;
            case 'u': printf("%s%" PRIu32, before, value.u); break;
            case 'b': printf("%s%s", before, value.b ? "true" : "false"); break;
            }
        } else if ((r = sd_bus_message_skip(m, NULL)) < 0) { /* a newer daemon may say more */
            return r;
        }
    }
    return r;
}

/* Prints an answer and drops it. */
static void show(const char *word, sd_bus_message *answer)
{
    printf("%s", word);
    must(print_values(answer, " "), word);
    printf("\n");
    sd_bus_message_unref(answer);
}

/* App1.Message */
static int on_message(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
    (void) userdata, (void) error;
    int r = sd_bus_message_skip(m, "ss"); /* app and id, which the dictionary has as well */
    printf("message");
    if (r < 0 || (r = print_values(m, " ")) < 0)
        return r;
    printf("\n");
    /* Here a real app puts the message where it is safe, unless it says `again` and its id is there
     * already. The answer is the delivery. */
    return sd_bus_reply_method_return(m, NULL);
}

static const sd_bus_vtable app1[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD_WITH_ARGS("Message", SD_BUS_ARGS("s", app, "s", id, "a{sv}", message), SD_BUS_NO_RESULT,
                            on_message, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_VTABLE_END,
};

/* Push1.BadgeChanged and Push1.RegistrationChanged */
static int on_signal(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
    (void) userdata, (void) error;
    printf("%s", sd_bus_message_get_member(m));
    int r = print_values(m, " ");
    printf("\n");
    return r;
}

/* The daemon's name has a new owner, or none. */
static int on_owner(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
    const char *owner = "";
    (void) userdata, (void) error;
    int r = sd_bus_message_read(m, "sss", NULL, NULL, &owner);
    daemon_is_new = *owner != '\0';
    return r;
}

static void begin(void)
{
    sd_bus_message *answer;
    int end;

    /* hold-unread: what came while the app was away waits until it asks. */
    show("state", call("Connect", "soa{sv}", app, "/app", 1, "hold-unread", "b", true));
    if (leave) {
        sd_bus_message_unref(call("Deregister", "s", app));
        exit(0);
    }
    sd_bus_message_unref(call("Register", "s", app));
    show("regId", call("GetRegistrationId", "s", app)); /* for the app's own server */
    show("launch", call("GetLaunch", "s", app));        /* why the daemon started the app, if it did */
    for (;;) {
        answer = call("TakeUnread", "s", app);
        must(sd_bus_message_enter_container(answer, 'a', "{sv}"), "TakeUnread");
        must(end = sd_bus_message_at_end(answer, false), "TakeUnread");
        if (end)
            break;
        show("unread", answer);
    }
    sd_bus_message_unref(answer);
    show("badge", call("GetBadge", "s", app));
    sd_bus_message_unref(call("SetBadge", "su", app, 0)); /* the user has seen it all */
    show("badge", call("GetBadge", "s", app));
    show("waiting", call("RequestUnread", "s", app)); /* the other way to them: as calls of Message */
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: app APP-ID [--leave]\n");
        return 64;
    }
    app = argv[1];
    leave = argc > 2 && strcmp(argv[2], "--leave") == 0;
    if (setvbuf(stdout, NULL, _IOLBF, 0) != 0)
        return 1;

    must(sd_bus_open_user(&bus), "the bus"); /* sd_bus_open_system() where the daemon is there */
    must(sd_bus_add_object_vtable(bus, NULL, "/app", "org.bellwire.App1", app1, NULL), "App1");
    must(sd_bus_match_signal(bus, NULL, "org.bellwire.Push", NULL, "org.bellwire.Push1", NULL, on_signal, NULL),
         "signals");
    must(sd_bus_add_match(bus, NULL, "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',"
                                     "arg0='org.bellwire.Push'", on_owner, NULL), "NameOwnerChanged");
    begin();
    for (;;) {
        int busy = sd_bus_process(bus, NULL);
        must(busy, "the bus");
        if (daemon_is_new) { /* it does not know the app yet */
            daemon_is_new = false;
            begin();
        } else if (!busy) {
            must(sd_bus_wait(bus, UINT64_MAX), "the bus");
        }
    }
}
