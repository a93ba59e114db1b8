// Every sentence of the page, in Chinese and English. Chinese is what is shown first.

export const WORDS = {
  title: ["积分终端", "Points terminal"],
  language: ["EN", "中文"],
  offline: ["网络不通 · 正在重试", "No network · retrying"],
  otherTab: [
    "终端已在另一个窗口打开。请关闭其中一个，再刷新本页。",
    "The terminal is open in another window. Close one of them and reload.",
  ],
  notKept: [
    "手机无法保存记录，交易没有发送。请释放存储空间后重试。",
    "The phone cannot store records, so nothing was sent. Free some storage and try again.",
  ],
  back: ["返回", "Back"],
  cancel: ["取消", "Cancel"],
  confirm: ["确定", "OK"],
  points: ["积分", "points"],
  nPoints: ["{n} 积分", "{n} points"],
  yuan: ["{n} 元", "¥{n}"],

  unfitTitle: ["此浏览器不能作为终端", "This browser cannot be a terminal"],
  "unfit-secure-context": [
    "请用 https:// 开头的地址打开本页。普通 http:// 地址没有安全密钥，也不能用摄像头。",
    "Open this page at an https:// address. Plain http:// has no secure keys and no camera.",
  ],
  "unfit-ed25519": [
    "浏览器版本太旧，没有 Ed25519 签名。请更新到 Chrome 137、Safari 17、Firefox 129 或更新的版本。",
    "The browser is too old: no Ed25519 signatures. Update to Chrome 137, Safari 17, Firefox 129 or newer.",
  ],
  "unfit-storage": [
    "浏览器不允许本页保存数据。请退出无痕模式，或换用新版浏览器。",
    "The browser does not let this page store data. Leave private mode or use a newer browser.",
  ],

  activateTitle: ["激活终端", "Activate this terminal"],
  activateHow: [
    "请输入运营方发给您的激活码。激活码只能用一次，密钥保存在这部手机里，不会离开。",
    "Enter the activation code that the operator gave you. It works once. The key stays on this phone.",
  ],
  activationCode: ["激活码", "Activation code"],
  activate: ["激活", "Activate"],
  activating: ["正在激活…", "Activating…"],

  take: ["收积分", "Take points"],
  offers: ["商品", "Offers"],
  book: ["账单", "Sales"],
  howMuch: ["请输入积分", "Enter points"],
  scan: ["扫付款码", "Scan code"],
  waitForNetwork: ["等待网络…", "Waiting for network…"],
  scanFirst: ["请先输入积分或选择商品，再扫码。", "Enter points or choose an offer first, then scan."],
  clear: ["清空", "Clear"],
  erase: ["退格", "Erase"],

  offersNone: ["还没有商品。请在商户后台添加。", "There are no offers yet. Add them in the merchant's office."],
  offersUnknown: ["商品没有取到，网络恢复后会自动重试。", "Offers could not be loaded. They will be when the network is back."],
  left: ["剩 {n} 份", "{n} left"],
  notOpen: ["不在兑换时间内", "Not open now"],
  soldOut: ["已兑完", "Sold out"],

  scanHow: ["请将付款码对准取景框", "Hold the payment code in the frame"],
  scanType: ["或输入 18 位数字", "or type its 18 digits"],
  scanWrong: [
    "付款码应为 80 开头的 18 位数字，请核对后重输。",
    "A payment code has 18 digits and begins with 80. Check and type again.",
  ],
  noCamera: ["摄像头打不开。请允许使用摄像头，或用扫码枪、手工输入。", "The camera cannot be opened. Allow it, or use a hand scanner or type."],

  pending: ["处理中", "In progress"],
  paying: ["正在扣积分…", "Taking the points…"],
  asking: ["网络没有回音，正在查询结果…", "No answer yet. Asking what became of it…"],
  confirming: ["请居民在手机上确认", "The resident must confirm on the phone"],
  capturing: ["已冻结，正在扣积分…", "Held. Taking the points…"],
  reversing: ["没有问到结果，正在撤销这一笔…", "No result. Cancelling this sale…"],
  undoing: ["正在撤销…", "Cancelling…"],
  refunding: ["正在退积分…", "Refunding…"],
  dontRepeat: ["请稍候，不要让顾客再付一次。", "Please wait. Do not let the customer pay again."],
  reversingNext: [
    "这一笔不会再扣积分。可以先收下一笔，系统会继续撤销。",
    "This sale will not take points. You may serve the next customer; cancelling goes on.",
  ],
  exceptionNext: ["多次没有成功，请联系运营方。系统会继续重试。", "It failed many times. Call the operator. It goes on trying."],
  goOn: ["下一笔", "Next sale"],

  success: ["成功", "Success"],
  failure: ["失败", "Failed"],
  paidTaken: ["已收积分", "Points taken"],
  undoneDone: ["已撤销，积分已退回", "Cancelled, points given back"],
  reversedDone: ["没有扣积分", "No points were taken"],
  reversedWhat: ["这一笔没有问到结果，已经撤销。", "No result came in time, so this sale was cancelled."],
  reversedNext: ["请居民刷新付款码，再收一次。", "Ask the resident for a new code and try again."],
  refundedDone: ["已退积分", "Points refunded"],
  next: ["下一笔", "Next sale"],
  again: ["重新收", "Try again"],

  batchN: ["第 {n} 批", "Batch {n}"],
  sales: ["收", "Sales"],
  refunds: ["退", "Refunds"],
  reversals: ["撤销", "Cancelled"],
  count: ["{n} 笔", "{n}"],
  unresolved: ["未决", "Unresolved"],
  unresolvedHow: ["这些交易还没有结果，系统会自动处理。", "These have no result yet. They are being dealt with."],
  tryNow: ["立即重试", "Try now"],
  salesList: ["交易", "Sales"],
  earlier: ["更早", "Earlier"],
  nothingYet: ["这一批还没有交易。", "Nothing in this batch yet."],
  closeBatch: ["结批", "Close batch"],
  closing: ["正在结批…", "Closing…"],
  closeUnresolved: ["还有未决交易，请等它们有结果后再结批。", "Some sales have no result yet. Close the batch when they have."],
  agreed: ["账目一致", "Totals agreed"],
  agreedWhat: ["第 {n} 批已结清。", "Batch {n} is closed."],
  "not-agreed": ["账目不一致", "Totals do not agree"],
  notAgreedWhat: [
    "本批没有结。请核对下面不同的交易，并联系运营方。",
    "The batch stays open. Check the differences below and call the operator.",
  ],
  closeTheirs: ["以服务器为准，结批", "Close by the server's totals"],
  closedBefore: ["第 {n} 批已经结过", "Batch {n} is closed already"],
  carried: ["此后的交易已移到第 {n} 批，请再结一次。", "What came after it is in batch {n} now. Close that one."],
  "cannot-confirm": ["暂不能确认", "Cannot confirm now"],
  cannotConfirmWhat: ["服务器还有未完成的交易。请过几分钟再结批。", "The server still has open sales. Close the batch in a few minutes."],
  closeUnknown: [
    "没有收到结批结果。请再结一次，不会重复；在此之前不能收积分。",
    "No answer. Close it again; nothing happens twice. No sales before that.",
  ],
  mine: ["本机", "Here"],
  theirs: ["服务器", "Server"],
  onlyServer: ["只有服务器有", "Only on the server"],
  onlyMine: ["只有本机有", "Only here"],

  sale: ["收积分", "Sale"],
  refund: ["退积分", "Refund"],
  undo: ["整笔撤销", "Cancel whole sale"],
  undoSure: ["撤销后，{n} 积分退回居民。", "{n} points go back to the resident."],
  refundItem: ["退商品", "Refund item"],
  refundPart: ["退部分积分", "Refund part"],
  refundHow: ["退多少积分？最多 {n}", "How many points? At most {n}"],
  refundNow: ["退积分", "Refund"],
  time: ["时间", "Time"],
  number: ["单号", "Reference"],
  state: ["状态", "State"],
  refundedN: ["已退 {n} 积分", "{n} points refunded"],
  "done-paid": ["已收", "Taken"],
  "done-declined": ["未收", "Not taken"],
  "done-reversed": ["已撤销", "Cancelled"],
  "done-undone": ["已撤销", "Cancelled"],
  "done-refunded": ["已退", "Refunded"],

  about: ["本机", "This terminal"],
  merchant: ["商户", "Merchant"],
  terminal: ["终端", "Terminal"],
  keyId: ["密钥", "Key"],
  newKey: ["更换密钥", "Change key"],
  activateAgain: ["重新激活", "Activate again"],
  keyChanged: ["密钥已更换。", "The key was changed."],
};

// What went wrong, and what the cashier does next, by the problem's code.
const NEW_CODE = ["请居民刷新付款码，再扫一次。", "Ask the resident to refresh the code and scan again."];
const CALL = ["请联系运营方。", "Call the operator."];
const LATER = ["请过一分钟再试。", "Try again in a minute."];
const LESS = ["请减少积分，或换其他方式付款。", "Take fewer points or another payment."];
const OTHER = ["请换其他商品，或换其他方式付款。", "Choose another offer or payment."];
const ASK = ["请与居民确认后，刷新付款码再收。", "Ask the resident, get a new code, then try again."];
const LOOK = ["请在账单里核对这一笔。", "Check this sale under Sales."];

export const PROBLEMS = {
  "code-expired": [["付款码已过期", "The payment code has expired"], NEW_CODE],
  "code-used": [["付款码已用过", "The payment code was used before"], NEW_CODE],
  "code-unknown": [["付款码无效", "The payment code is not known"], NEW_CODE],
  "code-malformed": [["付款码不正确", "That is not a payment code"], NEW_CODE],
  "rate-limited": [["试得太频繁", "Too many attempts"], LATER],
  "insufficient-points": [["积分不足", "Not enough points"], LESS],
  "account-frozen": [
    ["居民账户已冻结", "The resident's account is frozen"],
    ["请居民联系客服，换其他方式付款。", "The resident should call support. Take another payment."],
  ],
  "account-unknown": [["没有这个居民账户", "No such resident"], NEW_CODE],
  "offer-unknown": [["没有这个商品", "No such offer"], OTHER],
  "offer-sold-out": [["商品已兑完", "The offer is sold out"], OTHER],
  "offer-not-open": [["商品不在兑换时间内", "The offer is not open now"], OTHER],
  "offer-limit-reached": [["居民已达兑换上限", "The resident has reached the offer's limit"], OTHER],
  "offer-day-limit-reached": [
    ["今天的份数已兑完", "Today's share of the offer is gone"],
    ["请明天再来，或换其他商品。", "Come again tomorrow, or choose another offer."],
  ],
  "campaign-spent": [["活动预算已用完", "The campaign's budget is spent"], OTHER],
  "items-invalid": [["份数不正确", "The number of items is not valid"], OTHER],
  "not-whole-items": [
    ["商品只能整份退", "An offer is refunded in whole items"],
    ["请按整份退，或整笔撤销。", "Refund whole items, or cancel the sale."],
  ],
  "not-agreed": [["居民没有同意", "The resident did not agree"], ASK],
  "not-agreed-in-time": [["居民没有及时同意", "The resident did not agree in time"], ASK],
  "not-taken": [
    ["没有收成：积分不足，或居民没有同意", "Not taken: too few points, or the resident did not agree"],
    ASK,
  ],
  expired: [["冻结已超时，积分已退回", "The hold ran out and the points went back"], NEW_CODE],
  voided: [["这一笔已撤销", "This sale was cancelled"], NEW_CODE],
  "hold-abandoned": [["这一笔没有完成，没有扣积分", "This sale was not finished, no points were taken"], NEW_CODE],
  "redemption-reversed": [["这一笔已经撤销", "This sale was cancelled"], NEW_CODE],
  "redemption-not-held": [["这一笔已经结束", "This sale has ended"], LOOK],
  "capture-exceeds-hold": [["扣的比冻结的多", "More than was held"], CALL],
  "reversal-mismatch": [["积分与原交易不同", "The points differ from the sale's"], CALL],
  "hold-expired": [["冻结已超时，积分已退回", "The hold ran out and the points went back"], NEW_CODE],
  "merchant-unknown": [["没有这个商户", "No such merchant"], CALL],
  "terminal-unknown": [["没有这个终端", "No such terminal"], CALL],
  "terminal-suspended": [["本终端已停用", "This terminal is suspended"], CALL],
  "signature-invalid": [
    ["本终端的密钥无效", "This terminal's key is not valid"],
    ["请向运营方要激活码，在「本机」里重新激活。", "Ask the operator for a code and activate again under This terminal."],
  ],
  "signature-expired": [
    ["手机时间不准", "The phone's clock is wrong"],
    ["请在手机设置里打开自动时间，再试。", "Turn on automatic time in the phone's settings and try again."],
  ],
  "signature-required": [["需要用本终端的密钥", "This needs the terminal's own key"], CALL],
  "activation-code-unknown": [["激活码不正确", "The activation code is not known"], ["请核对后重输。", "Check and type again."]],
  "activation-code-expired": [
    ["激活码已过期", "The activation code has expired"],
    ["请向运营方要新的激活码。", "Ask the operator for a new one."],
  ],
  "activation-code-used": [
    ["激活码已用过", "The activation code was used before"],
    ["请向运营方要新的激活码。", "Ask the operator for a new one."],
  ],
  "wrong-type": [["填写的内容不正确", "What was entered is not valid"], ["请核对后重输。", "Check and type again."]],
  "too-many-attempts": [["试得太频繁", "Too many attempts"], LATER],
  "key-ended": [
    ["本终端的密钥已停用", "This terminal's key has ended"],
    ["请向运营方要激活码，在「本机」里重新激活。", "Ask the operator for a code and activate again under This terminal."],
  ],
  unauthenticated: [["本终端未激活或已停用", "This terminal is not activated"], CALL],
  "role-not-allowed": [["本终端无权这样做", "This terminal may not do that"], CALL],
  "not-yours": [["这不是本终端的交易", "This sale is not this terminal's"], CALL],
  "identity-reused": [["单号已用过", "The reference was used before"], CALL],
  "use-refund": [
    ["所在批次已结，不能撤销", "Its batch is closed: it cannot be cancelled"],
    ["请改用「退部分积分」。", "Refund it instead."],
  ],
  "refund-exceeds-captured": [["退的比收的多", "More than was taken"], LOOK],
  "redemption-unknown": [["没有这一笔", "No such sale"], LOOK],
  "redemption-not-captured": [["这一笔没有收积分，不能退", "No points were taken, so none can be refunded"], LOOK],
  "batch-not-open": [
    ["批次号与服务器不同，已更正", "The batch's number was not the server's; it is now"],
    ["请再结一次。", "Close it again."],
  ],
  "batch-closed": [["这一批已经结过", "This batch is closed already"], CALL],
  "no-answer": [["没有连上服务器", "The server did not answer"], ["请检查网络后再试。", "Check the network and try again."]],
};
const STRANGE = [["没有成功", "It did not work"], CALL];

let language = localStorage.getItem("language") === "en" ? 1 : 0;

export function switchLanguage() {
  language = 1 - language;
  localStorage.setItem("language", language ? "en" : "zh");
}

export function languageTag() {
  return language ? "en" : "zh-CN";
}

export function t(name, facts = {}) {
  return WORDS[name][language].replace(/\{(\w+)\}/g, (_, fact) => facts[fact]);
}

// {what, next} of a problem's code. One that is not known here is shown with its name, so that it can be told.
export function problem(code) {
  const [what, next] = PROBLEMS[code] ?? STRANGE;
  const named = PROBLEMS[code] ? what[language] : `${what[language]}（${code}）`;
  return { what: named, next: next[language] };
}

export function points(n) {
  return n.toLocaleString("en-US");
}

export function yuan(fen) {
  const cents = String(Math.abs(fen) % 100).padStart(2, "0");
  return t("yuan", { n: `${fen < 0 ? "-" : ""}${points(Math.floor(Math.abs(fen) / 100))}.${cents}` });
}

export function clock(at) {
  const form = { hour12: false, month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit" };
  return new Date(at).toLocaleString(languageTag(), form);
}
