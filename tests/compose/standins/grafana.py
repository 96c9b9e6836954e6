"""A stand-in for Grafana: answers `/api/health`, and says which dashboards and data sources it was given."""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DASHBOARDS, PROVISIONING = Path("/var/lib/grafana/dashboards"), Path("/etc/grafana/provisioning")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        known = {"/api/health": {"database": "ok", "version": "stand-in"}, "/api/search": dashboards()}
        told = known.get(self.path.partition("?")[0])
        body = json.dumps(told).encode()
        self.send_response(404 if told is None else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def dashboards():
    told = [json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))]
    return [{"uid": dashboard["uid"], "title": dashboard["title"], "type": "dash-db"} for dashboard in told]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if not Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text().strip():
        sys.exit("no admin password")
    print(f"STAND-IN for Grafana; {len(list(PROVISIONING.rglob('*.yml')))} provisioning files", flush=True)
    ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
