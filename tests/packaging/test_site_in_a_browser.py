"""The documentation in a browser, as wide as a telephone and as a desktop."""

import contextlib
import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading

import pytest

pytestmark = pytest.mark.one_backend

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Shows each page at each width in a frame, and sends what it measures.
MEASURE = """<!doctype html><body><script>
const shown = async (path, width) => {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src: path, width: width, height: 800});
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  const page = frame.contentDocument, root = page.documentElement;
  const found = {
    path: path,
    width: width,
    overflow: root.scrollWidth - root.clientWidth,
    screens: page.querySelector("article").scrollHeight / 800,
    broken: [...page.images].filter(image => !image.naturalWidth)
      .map(image => image.src),
    cut: [...page.querySelectorAll("h1, article p")].filter(each =>
      each.getBoundingClientRect().right > root.clientWidth + 1)
      .map(each => each.textContent.slice(0, 60)),
  };
  frame.remove();
  return found;
};
(async () => {
  const found = [];
  for (const path of PAGES)
    for (const width of WIDTHS) found.push(await shown(path, width));
  await fetch("/", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and receives what the browser measures."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.received.put(json.loads(self.rfile.read(length)))
        self.send_response(204)
        self.end_headers()

    def copyfile(self, source, outputfile):
        with contextlib.suppress(ConnectionError):  # the frame is gone
            super().copyfile(source, outputfile)

    def log_message(self, *_):
        pass


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pages_fit_a_telephone_and_a_desktop(site, tmp_path):
    """No page is wider than the window, and no picture is missing."""
    pages = [
        f"/{page.parent.relative_to(site).as_posix()}/".replace("/./", "/")
        for page in sorted(site.rglob("index.html"))
    ]
    assert {"/", "/docs/speed/", "/notebooks/1_five_minutes/"} < set(pages)
    script = MEASURE.replace("PAGES", json.dumps(pages))
    (site / "measure.html").write_text(script.replace("WIDTHS", "[390, 1280]"))
    handler = functools.partial(Handler, directory=site)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        server.received = queue.Queue()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",  # without it, it ends at once
                f"--user-data-dir={tmp_path}",
                f"http://localhost:{server.server_port}/measure.html",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            found = server.received.get(timeout=300)
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()
            (site / "measure.html").unlink()
    assert len(found) == 2 * len(pages)
    assert [page for page in found if page["overflow"] > 0] == []
    assert [page for page in found if page["broken"] or page["cut"]] == []
    # The home page says in a few screens what the library is.
    home = {
        page["width"]: page["screens"] for page in found if page["path"] == "/"
    }
    assert 1 < home[1280] < 6
    assert 1 < home[390] < 10
