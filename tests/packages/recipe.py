"""Reads a recipe by BitBake's own parser and prints as JSON what it says:

    recipe.py RECIPE CLASSES NAME=VALUE...

The values are those of bitbake.conf and the classes of OE-core, of which only the names are here: CLASSES is the
folder that they are looked for in.
"""

import json
import sys
import types

# PyPI has BitBake without its servers, which only sharing a cache needs.
for name in ("hashserv", "hashserv.client", "prserv"):
    sys.modules[name] = types.ModuleType(name)

import bb.data  # noqa: E402
import bb.parse  # noqa: E402
import bb.siggen  # noqa: E402

WANTED = ["PN", "SRC_URI", "LICENSE", "LIC_FILES_CHKSUM", "CARGO_VENDORING_DIRECTORY", "CARGO_BUILD_FLAGS",
          "USERADD_PARAM:bellwire", "SYSTEMD_SERVICE:bellwire", "FILES:bellwire", "CONFFILES:bellwire", "do_install",
          "LIBSQLITE3_SYS_USE_PKG_CONFIG", "CARGO_PROFILE_RELEASE_STRIP"]


def main(recipe, classes, *values):
    data = bb.data.init()
    bb.parse.siggen = bb.siggen.init(data)
    data.setVar("BBPATH", classes)
    data.setVar("__bbclasstype", "recipe")
    for value in values:
        data.setVar(*value.split("=", 1))
    parsed = bb.parse.handle(recipe, data)[""]
    print(json.dumps({name: parsed.getVar(name) for name in WANTED}))


main(*sys.argv[1:])
