// Built with assemblyscript 0.28.20 (npm): asc assemblyscript.ts -O3s --use abort= -o assemblyscript.wasm
// An AssemblyScript module: its compiler's own runtime, strings and garbage collection included.
export function fibonacci(n: i32): i64 {
  let a: i64 = 0, b: i64 = 1;
  for (let i = 0; i < n; i++) {
    const next = a + b;
    a = b;
    b = next;
  }
  return a;
}

// The sum of the digits of all numbers below `limit`, by way of strings.
export function digits(limit: i32): i32 {
  let sum = 0;
  for (let i = 0; i < limit; i++) {
    const text = i.toString();
    for (let at = 0; at < text.length; at++) sum += text.charCodeAt(at) - 48;
  }
  return sum;
}

// Fills an array beyond its end: the runtime's own bounds check aborts.
export function beyond(): i32 {
  const numbers = new StaticArray<i32>(3);
  return numbers[3 + numbers.length];
}
