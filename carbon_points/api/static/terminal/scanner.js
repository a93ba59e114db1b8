// The camera as a scanner of QR codes and Code 128: by the browser's own detector where it has one, else by zxing.

import { digitsOf, isPaymentCode } from "./code.js";

const EVERY_MS = 120;
const WIDEST = 960; // pixels looked at: enough for a code that fills a third of the picture

// Shows the camera in `video` and calls `found` once with the first payment code. Returns how to stop it.
// Raises what getUserMedia raises: no camera, or nobody allowed it.
export async function scan(video, found) {
  if (!navigator.mediaDevices?.getUserMedia) throw new Error("no camera");
  const wanted = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } };
  const stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
  let running = true;
  const stop = () => {
    running = false;
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
  video.srcObject = stream;
  video.play().catch(() => {}); // stopped before it began
  look(video, () => running, found, stop);
  return stop;
}

async function look(video, running, found, stop) {
  let read = await ownDetector();
  while (running()) {
    try {
      read ??= await zxing();
      for (const text of video.readyState >= 2 ? await read(video) : []) {
        if (!running() || !isPaymentCode(digitsOf(text))) continue;
        stop();
        found(digitsOf(text));
      }
    } catch {
      read = null; // a detector that fails is none
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

async function ownDetector() {
  if (!("BarcodeDetector" in globalThis)) return null;
  const formats = ["qr_code", "code_128"];
  const known = await BarcodeDetector.getSupportedFormats().catch(() => []);
  if (!formats.every((format) => known.includes(format))) return null;
  const detector = new BarcodeDetector({ formats });
  return async (video) => (await detector.detect(video)).map((code) => code.rawValue);
}

// Loaded only where it is needed: the module and its WebAssembly are 1 MB, served from here.
async function zxing() {
  const { prepareZXingModule, readBarcodes } = await import("../zxing-wasm/reader/index.js");
  const locateFile = (file) => new URL(`../zxing-wasm/reader/${file}`, import.meta.url).href;
  await prepareZXingModule({ overrides: { locateFile }, fireImmediately: true });
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const options = { formats: ["QRCode", "Code128"], tryHarder: true, maxNumberOfSymbols: 1 };
  return async (video) => {
    const scale = Math.min(1, WIDEST / video.videoWidth);
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    context.drawImage(video, 0, 0, canvas.width, canvas.height);
    const picture = context.getImageData(0, 0, canvas.width, canvas.height);
    return (await readBarcodes(picture, options)).map((code) => code.text);
  };
}
