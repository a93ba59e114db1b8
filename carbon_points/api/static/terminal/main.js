// The page: its state, what pressing does, and when it is drawn anew.

import { digitsOf, isPaymentCode } from "./code.js";
import { h, icon } from "./elements.js";
import { Identity, missing } from "./identity.js";
import { Journal } from "./journal.js";
import { listen } from "./keys.js";
import { Network } from "./network.js";
import { keepPage } from "./offline.js";
import { isOpen, refundable } from "./sale.js";
import { scan } from "./scanner.js";
import * as screens from "./screens.js";
import { allowSound, signal } from "./signal.js";
import { Till } from "./till.js";
import { languageTag, switchLanguage, t } from "./words.js";

const PING_MS = 5_000;
const BEFORE = { entry: "book", undo: "book", refund: "book", about: "take", scan: "take" };
const TABS = ["take", "offers", "book"];

class Page {
  state = { screen: "take", digits: "" };
  reachable = true;
  offers = null;
  fenPerPoint = 0;
  merchantName = null;
  #typedBefore = "";
  #stopCamera = () => {};

  async open() {
    const lacking = await missing();
    if (lacking.length) return this.go("unfit", { lacking });
    navigator.storage?.persist?.();
    keepPage().catch(() => {}); // it is a convenience: without it the page needs the network to open
    this.journal = await Journal.open();
    this.identity = await Identity.load(this.journal);
    this.#watchNetwork();
    listen(document, {
      typed: (digit, first) => {
        if (first) this.#typedBefore = this.state.digits;
        this.type(digit);
      },
      scanned: (code, before) => this.scannedByHand(code, before),
      pressed: (key) => this.pressed(key),
    });
    document.addEventListener("pointerdown", allowSound, { once: true });
    return this.identity.active ? this.#begin() : this.go("activate");
  }

  async #begin() {
    const sign = (request) => this.identity.sign(request);
    const clockIsWrong = (theirs) => this.identity.clockIsWrong(theirs);
    this.network = new Network({ origin: location.origin, sign, clockIsWrong, seen: (there) => this.#seen(there) });
    this.till = new Till({ journal: this.journal, network: this.network, identity: this.identity.known });
    this.till.addEventListener("changed", ({ detail }) => this.#changed(detail));
    this.till.addEventListener("broken", () => this.go("take", { note: t("notKept") }));
    await this.till.open();
    const left = this.till.blocking;
    this.go(left ? "attempt" : "take", left ? { reference: left.reference } : {});
    await Promise.all([this.#learn(), this.till.learnBatch()]);
  }

  // What a point is worth here, and what can be had.
  async #learn() {
    const merchant = encodeURIComponent(this.identity.known.merchant);
    const terms = this.network.get(`/v1/merchants/${merchant}`);
    const [known, offers] = await Promise.all([terms, this.#offersOf(merchant)]);
    if (known.answered && known.status < 300) {
      this.fenPerPoint = known.body.fen_per_point;
      this.merchantName = known.body.name;
    }
    this.offers = offers ?? this.offers;
    if (["take", "offers"].includes(this.state.screen)) this.draw();
  }

  // All that can be had, now or at another time; null where it cannot be learnt.
  async #offersOf(merchant) {
    const found = [];
    for (let cursor = ""; cursor !== null; ) {
      const page = await this.network.get(`/v1/offers?merchant=${merchant}&limit=100${cursor && `&cursor=${cursor}`}`);
      if (!page.answered || page.status >= 300) return null;
      found.push(...page.body.data.filter((offer) => !offer.withdrawn));
      cursor = page.body.next_cursor ?? null;
    }
    return found;
  }

  // -- the network ----------------------------------------------------------------------------------------------------

  #watchNetwork() {
    const ask = async () => {
      if (!this.reachable) {
        const there = await fetch("/healthz", { cache: "no-store" }).then((r) => r.ok, () => false);
        this.#seen(there);
      }
      setTimeout(ask, PING_MS);
    };
    addEventListener("offline", () => this.#seen(false));
    addEventListener("online", () => ask());
    ask();
  }

  #seen(there) {
    if (there === this.reachable) return;
    this.reachable = there;
    if (there) {
      this.till?.hurry();
      if (this.network) this.#learn();
    }
    this.#drawFrame();
    if (!["scan", "activate"].includes(this.state.screen)) this.draw();
  }

  // -- what is pressed ------------------------------------------------------------------------------------------------

  async activate(code) {
    this.go("activate", { waiting: true });
    const answer = await this.identity.activate(code, location.origin);
    if (answer.answered && answer.status < 300) {
      if (this.till) return location.reload(); // it was one before, perhaps another
      return this.#begin();
    }
    return this.go("activate", { failed: answer.answered ? answer.body.code : "no-answer" });
  }

  type(digits) {
    if (!["take", "refund"].includes(this.state.screen)) return;
    const next = (this.state.digits + digits).replace(/^0+/, "");
    if (next.length <= screens.MOST_DIGITS) this.#set({ digits: next, note: undefined });
  }

  erase() {
    this.#set({ digits: this.state.digits.slice(0, -1) });
  }

  clear() {
    this.#set({ digits: "" });
  }

  pressed(key) {
    const { screen } = this.state;
    if (key === "Backspace" && ["take", "refund"].includes(screen)) this.erase();
    else if (key === "Escape" && screen === "scan") this.go("take");
    else if (key === "Enter") document.querySelector("#screen .main:enabled")?.click();
  }

  scan() {
    const wanted = Number(this.state.digits);
    if (wanted) this.#toScan({ points: wanted });
  }

  choose(offer) {
    const { offer: id, points, title, amount_fen } = offer;
    this.#toScan({ offer: id, items: 1, points, title, fen: amount_fen });
  }

  fenOf(what) {
    return what.fen ?? what.points * this.fenPerPoint;
  }

  async #toScan(what) {
    if (this.#mustWait()) return undefined;
    this.go("scan", { what, digits: this.state.digits });
    try {
      const stop = await scan(document.getElementById("camera"), (code) => this.scanned(code));
      if (this.state.screen === "scan" && this.state.what === what) this.#stopCamera = stop;
      else stop(); // left while the camera opened
    } catch {
      const says = document.getElementById("camera-says");
      if (says) says.textContent = t("noCamera");
    }
    return undefined;
  }

  // Whether something stands in the way of a sale; it is shown then.
  #mustWait() {
    const { blocking, closing } = this.till;
    if (blocking) this.go("attempt", { reference: blocking.reference });
    else if (closing) this.go("book");
    return Boolean(blocking || closing);
  }

  async scanned(text) {
    const code = digitsOf(text);
    if (!isPaymentCode(code)) {
      document.getElementById("scan-wrong").hidden = false;
      return;
    }
    if (this.state.screen !== "scan") return; // one code a sale, however often it is seen
    const { what } = this.state;
    this.go("waiting");
    try {
      const { fen, ...sold } = what;
      const reference = await this.till.sell(sold, fen ?? what.points * this.fenPerPoint, code);
      this.go("attempt", { reference });
    } catch {
      this.go("take", { note: t("notKept") });
    }
  }

  // A hand scanner works from where the amount is typed, too; its digits are taken out of the amount again.
  scannedByHand(code, before) {
    const { screen } = this.state;
    if (screen === "scan") return this.scanned(code);
    if (screen !== "take") return undefined;
    const digits = this.#typedBefore + before;
    const wanted = Number(digits);
    this.#set({ digits });
    if (!wanted) return this.#set({ note: t("scanFirst") });
    if (!isPaymentCode(code) || !this.reachable) return this.scan();
    if (this.#mustWait()) return undefined;
    this.go("scan", { what: { points: wanted } });
    return this.scanned(code);
  }

  // Back to the beginning; where nothing was taken, with the same amount.
  fresh() {
    const entry = this.till.entries.get(this.state.reference);
    const again = entry.kind === "sale" && !entry.offer && ["declined", "reversed"].includes(entry.outcome?.word);
    this.go("take", { digits: again ? String(entry.points) : "" });
  }

  async undo(entry) {
    if (this.till.closing) return;
    this.go("waiting");
    await this.till.undo(entry.reference);
    this.go("attempt", { reference: entry.reference });
  }

  async refund(entry, wanted) {
    if (wanted > refundable(entry) || this.till.closing) return;
    this.go("waiting");
    this.go("attempt", { reference: await this.till.refund(entry, wanted) });
  }

  async closeBatch(theirs) {
    this.go("book", { waiting: true });
    const { batch, totals } = this.till;
    const answer = await this.till.closeBatch(theirs);
    const agreed = answer.answered && answer.body.answer === "agreed";
    if (answer.answered) signal(agreed ? "paid" : "failed");
    this.go("closed", { closing: { answer, batch, mine: totals } });
  }

  async rotate() {
    this.go("about", { waiting: true });
    const answer = await this.identity.rotate(this.network);
    const done = answer.answered && answer.status < 300;
    if (done) this.till.identity = this.identity.known;
    this.go("about", done ? { note: t("keyChanged") } : { failed: answer.answered ? answer.body.code : "no-answer" });
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  // The offers as they are now: what is left of them changes with every sale.
  showOffers() {
    this.go("offers");
    if (this.reachable) this.#learn();
  }

  go(screen, more = {}) {
    if (this.state.screen === "scan") {
      this.#stopCamera();
      this.#stopCamera = () => {};
    }
    this.state = { digits: "", ...more, screen };
    this.draw();
    document.getElementById("screen").scrollTop = 0;
  }

  #set(changes) {
    Object.assign(this.state, changes);
    this.draw();
  }

  #changed(entry) {
    const { screen, reference } = this.state;
    if (screen === "attempt" && entry.reference === reference && !isOpen(entry)) {
      const good = ["paid", "refunded", "undone"].includes(entry.outcome.word) && !entry.outcome.code;
      signal(good ? "paid" : "failed");
    }
    if (screen === "book" || (["attempt", "entry"].includes(screen) && entry.reference === reference)) this.draw();
    else this.#drawFrame();
  }

  draw() {
    const shown = document.getElementById("screen");
    const { screen } = this.state;
    const focused = shown.contains(document.activeElement);
    shown.replaceChildren(...(screens[screen]?.(this) ?? []).filter(Boolean));
    shown.dataset.screen = screen;
    if (focused) shown.focus({ preventScroll: true });
    this.#drawFrame();
  }

  // Bar, network and tabs: what stands around every screen.
  #drawFrame() {
    const { screen } = this.state;
    document.documentElement.lang = languageTag();
    document.title = t("title");
    const withTabs = this.till && TABS.includes(screen);
    document.getElementById("bar").replaceChildren(...this.#bar(screen, withTabs).filter(Boolean));
    document.getElementById("tabs").replaceChildren(...(withTabs ? TABS.map((tab) => this.#tab(tab)) : []));
    const network = document.getElementById("network");
    network.hidden = this.reachable;
    network.textContent = this.reachable ? "" : t("offline");
  }

  #bar(screen, withTabs) {
    const back = screen === "activate" ? this.till && "about" : BEFORE[screen];
    const name = this.merchantName ?? this.identity?.known?.merchant ?? t("title");
    const other = () => {
      switchLanguage();
      this.draw();
    };
    return [
      back && h("button", { "aria-label": t("back"), onclick: () => this.go(back) }, icon("back")),
      h("h1", {}, name),
      screen !== "scan" && h("button", { id: "language", onclick: other }, t("language")),
      withTabs && h("button", { "aria-label": t("about"), onclick: () => this.go("about") }, icon("gear")),
    ];
  }

  #tab(tab) {
    const waiting = this.till.unresolved.length;
    const press = () => (tab === "offers" ? this.showOffers() : this.go(tab));
    return h("button", { "aria-current": tab === this.state.screen ? "page" : null, onclick: press },
      icon(tab), t(tab), tab === "book" && waiting > 0 && h("span", { class: "badge" }, waiting));
  }
}

// One window is the terminal: two would each send what the other waits for.
const page = new Page();
if (navigator.locks) {
  navigator.locks.request("carbon-points-terminal", { ifAvailable: true }, async (lock) => {
    if (!lock) return page.go("otherTab");
    await page.open();
    return new Promise(() => {}); // until the window is closed
  });
} else {
  page.open();
}
