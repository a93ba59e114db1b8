// What a cashier hears and feels without looking: two rising tones for yes, one low one for no.

const TONES = { paid: [[880, 0], [1320, 0.14]], failed: [[220, 0], [180, 0.22]] };
const SHAKES = { paid: [80], failed: [200, 100, 200] };
let sound = null;

// Browsers let a page sound only after a touch.
export function allowSound() {
  sound ??= new AudioContext();
  sound.resume().catch(() => {});
}

export function signal(result) {
  navigator.vibrate?.(SHAKES[result]);
  if (sound?.state !== "running") return;
  for (const [hertz, after] of TONES[result]) {
    const tone = sound.createOscillator();
    const volume = sound.createGain();
    const begins = sound.currentTime + after;
    tone.frequency.value = hertz;
    volume.gain.setValueAtTime(0.25, begins);
    volume.gain.exponentialRampToValueAtTime(0.001, begins + 0.2);
    tone.connect(volume).connect(sound.destination);
    tone.start(begins);
    tone.stop(begins + 0.2);
  }
}
