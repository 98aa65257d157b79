"""A real website that needs no network: the standard library's own pydoc pages, on loopback.

`serving()` runs it in a child process for as long as a `with` block lasts. By hand,
`python -m examples.scraper.demo_site` prints the site's URL and serves until its stdin ends, so it
can't outlive the process that started it. Pages are rendered on request.

The modules are a fixed list of those that can be imported without a window, a prompt or a change
to anything. Modules that a build of Python lacks are not served, and no page links to them: a crawl
of this site ends without failures.
"""

import importlib
import os
import pydoc
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

# In every supported Python. A package comes with the submodules named in parentheses.
MODULES = """
abc argparse array ast
asyncio(base_events base_futures base_subprocess base_tasks constants coroutines events exceptions
    format_helpers futures locks log mixins proactor_events protocols queues runners
    selector_events sslproto staggered streams subprocess taskgroups tasks threads timeouts
    transports trsock)
atexit base64 bdb binascii bisect builtins bz2 calendar cmath cmd code codecs codeop
collections(abc)
colorsys compileall
concurrent(futures futures.process futures.thread)
configparser contextlib contextvars copy copyreg cProfile csv
ctypes(util)
dataclasses datetime
dbm(dumb)
decimal difflib dis doctest
email(base64mime charset contentmanager encoders errors feedparser generator header headerregistry
    iterators message mime mime.application mime.audio mime.base mime.image mime.message
    mime.multipart mime.nonmultipart mime.text parser policy quoprimime utils)
enum errno faulthandler filecmp fileinput fnmatch fractions ftplib functools gc genericpath getopt
getpass gettext glob graphlib gzip hashlib heapq hmac
html(entities parser)
http(client cookiejar cookies server)
imaplib
importlib(abc machinery metadata readers resources resources.abc resources.readers
    resources.simple simple util)
inspect io ipaddress itertools
json(decoder encoder scanner tool)
keyword linecache locale
logging(config handlers)
lzma mailbox marshal math mimetypes mmap modulefinder
multiprocessing(connection context dummy dummy.connection heap managers pool process queues
    reduction resource_tracker shared_memory sharedctypes spawn synchronize util)
netrc ntpath numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform
plistlib poplib posixpath pprint profile pstats py_compile pyclbr pydoc pyexpat queue quopri random
re reprlib runpy sched secrets select selectors shelve shlex shutil signal smtplib socket
socketserver ssl stat statistics string stringprep struct subprocess symtable sys sysconfig
tabnanny tarfile tempfile textwrap threading time timeit token tokenize tomllib trace traceback
tracemalloc types typing unicodedata
unittest(async_case case loader main mock result runner signals suite util)
urllib(error parse request response robotparser)
uuid venv warnings wave weakref webbrowser
wsgiref(handlers headers simple_server types util validate)
xml(dom dom.NodeFilter dom.domreg dom.expatbuilder dom.minicompat dom.minidom dom.pulldom
    dom.xmlbuilder etree etree.ElementInclude etree.ElementPath etree.ElementTree parsers
    parsers.expat sax sax.expatreader sax.handler sax.saxutils sax.xmlreader)
xmlrpc(client server)
zipapp zipfile zipimport zlib zoneinfo
"""

# pydoc links to modules it knows nothing about, and to the source file on this machine.
PYDOC_LINK = re.compile(r'<a href="(?:file:[^"]*|([\w.]+)\.html(?:#[^"]*)?)">(.*?)</a>', re.DOTALL)


@contextmanager
def serving() -> Generator[str]:
    """Serve the site from a child process and yield its URL; the child ends with the block."""
    command = [sys.executable, "-m", "examples.scraper.demo_site"]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],  # where `examples` is importable, wherever this runs
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the crawler handles a Ctrl-C in the terminal
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin:  # closing stdin ends the child
            url = child.stdout.readline().strip()
            if not url:
                raise RuntimeError("the demo site did not start")
            yield url


def module_names() -> Iterator[str]:
    """Return the names in MODULES, one by one."""
    for name, submodules in re.findall(r"(\w+)(?:\(([^)]*)\))?", MODULES):
        yield name
        yield from (f"{name}.{submodule}" for submodule in submodules.split())


def load_modules() -> dict[str, ModuleType]:
    """Import the served modules, except those that this Python was built without."""
    modules: dict[str, ModuleType] = {}
    for name in module_names():
        try:
            modules[name] = importlib.import_module(name)
        except ImportError:
            continue
    return modules


def render(name: str, modules: dict[str, ModuleType]) -> str:
    """Render the pydoc page of one module, with links to served pages only."""
    html = pydoc.HTMLDoc()
    page = html.page(pydoc.describe(modules[name]), html.document(modules[name], name))
    return PYDOC_LINK.sub(lambda link: link[0] if link[1] in modules else link[2], page)


def render_index(modules: dict[str, ModuleType]) -> str:
    """Render the front page: top-level modules; packages link to their submodules."""
    links = (f'<li><a href="{name}.html">{name}</a>' for name in modules if "." not in name)
    return pydoc.HTMLDoc().page("The standard library", f"<ul>{''.join(links)}</ul>")


class Site(ThreadingHTTPServer):
    """Make the web server; port 0 lets the system choose a free one."""

    daemon_threads = True

    def __init__(self, modules: dict[str, ModuleType], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.modules = modules

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the crawler has disconnected
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests: `/` is the index, `/os.path.html` the page of a module."""

    protocol_version = "HTTP/1.1"  # keep-alive: the connection serves the next page, too
    # head and body are two writes, and the second must not wait for an acknowledgement
    disable_nagle_algorithm = True
    # The base class has no better type.
    server: Site  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        modules = self.server.modules
        name = self.path.removeprefix("/").removesuffix(".html")
        if self.path == "/":
            self.answer(render_index(modules))
        elif name in modules and self.path == f"/{name}.html":
            self.answer(render(name, modules))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def answer(self, page: str) -> None:
        body = page.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


def main() -> None:
    warnings.simplefilter("ignore")  # deprecated modules warn when imported
    with Site(load_modules()) as site:
        os.environ.clear()  # the page of `os` shows the environment, which may hold passwords
        threading.Thread(target=site.serve_forever, daemon=True).start()
        print(site.url, flush=True)
        sys.stdin.read()
        site.shutdown()


if __name__ == "__main__":
    main()
