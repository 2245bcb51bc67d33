// How numbers, times and events are put into words.

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const FAR = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

let ahead = 0; // how far the vault's clock is before this one, in seconds
export const setClock = (now) => { ahead = now - Date.now() / 1000; };
export const now = () => Date.now() / 1000 + ahead;

export const clock = (at) => CLOCK.format(at * 1000);
/** As short as it is plain: a time of today, a day of this year, or one with its year. */
export function moment(at) {
  if (Math.abs(now() - at) < 43200) return clock(at);
  const near = new Date(at * 1000).getFullYear() === new Date(now() * 1000).getFullYear();
  return (near ? DAY : FAR).format(at * 1000);
}
export const utc = (at) => new Date(at * 1000).toISOString();
export const count = (n) => n.toLocaleString();
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function span(seconds) {
  const n = Math.max(0, Math.round(seconds));
  if (n < 60) return `${n} s`;
  if (n < 3600) return n < 600 && n % 60 ? `${Math.floor(n / 60)} min ${n % 60} s` : `${Math.round(n / 60)} min`;
  if (n < 172800) return `${Math.round(n / 3600)} h`;
  return `${Math.round(n / 86400)} days`;
}

export function micro(us) {
  if (us < 1000) return `${us} µs`;
  return us < 1e6 ? `${(us / 1000).toFixed(us < 1e4 ? 1 : 0)} ms` : `${(us / 1e6).toFixed(1)} s`;
}

export const keyName = (key) =>
  ({ master: "the master key", kek: "the KEK" })[key.level] ?? (key.label === "root" ? "the vault's own key" : key.label);
