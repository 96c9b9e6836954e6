// How does the page hear of changes? One stream of server-sent events, opened anew when it breaks or asks for other rows.

const RETRY_MS = 3000;
const SILENT_MS = 15000; // the gateway says something at least every 5 s
const HIDDEN_MS = 30000; // a page that nobody sees gives its place up

/**
 * Calls `onNews(news, isFirst)` for every message and `onState(state)` with connecting, live, lost or paused.
 * `query()` gives what to ask for when a stream is opened.
 */
export class Stream {
  constructor(query, onNews, onState) {
    this.query = query;
    this.onNews = onNews;
    this.onState = onState;
    this.source = null;
    this.paused = false;
    this.hidden = false;
    this.timer = 0; // until the next try
    this.hiding = 0; // until a hidden page gives up
    this.heard = 0;
    document.addEventListener("visibilitychange", () => this.seen());
    setInterval(() => this.source && performance.now() - this.heard > SILENT_MS && this.open(), 2000);
  }

  open() {
    this.close();
    if (this.paused || this.hidden) return;
    this.onState("connecting");
    this.heard = performance.now();
    const source = new EventSource(`v1/live?${this.query()}`);
    this.source = source;
    let isFirst = true;
    source.onopen = () => { isFirst = true; };
    source.onmessage = (event) => {
      if (source !== this.source) return;
      this.heard = performance.now();
      this.onState("live");
      this.onNews(JSON.parse(event.data), isFirst);
      isFirst = false;
    };
    source.addEventListener("bye", () => this.later(source));
    source.onerror = () => this.later(source);
  }

  later(source) {
    if (source !== this.source) return;
    this.close();
    this.onState("lost");
    this.timer = setTimeout(() => this.open(), RETRY_MS);
  }

  close() {
    clearTimeout(this.timer);
    if (this.source) this.source.close();
    this.source = null;
  }

  pause(isPaused) {
    this.paused = isPaused;
    if (isPaused) {
      this.close();
      this.onState("paused");
    } else this.open();
  }

  seen() {
    clearTimeout(this.hiding);
    if (document.hidden) {
      this.hiding = setTimeout(() => { this.hidden = true; this.close(); }, HIDDEN_MS);
    } else if (this.hidden) {
      this.hidden = false;
      this.open();
    }
  }
}
