// Payment codes as a till sees them: 18 digits, the last a Luhn check digit. What a scanner adds is taken off.

export const CODE_DIGITS = 18;

export function digitsOf(text) {
  return text.replace(/\D/g, "");
}

// Whether it can be a payment code at all: a misread or mistyped one is found before anything is sent.
export function isPaymentCode(text) {
  return /^80\d{16}$/.test(text) && luhnHolds(text);
}

function luhnHolds(digits) {
  let sum = 0;
  for (let i = 0; i < digits.length; i += 1) {
    const digit = Number(digits[digits.length - 1 - i]);
    const doubled = i % 2 ? digit * 2 : digit;
    sum += doubled > 9 ? doubled - 9 : doubled;
  }
  return sum % 10 === 0;
}
