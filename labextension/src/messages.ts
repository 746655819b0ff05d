/**
 * The catalogue: every sentence that a user reads, through the translator. The server sends codes and facts only.
 *
 * A state is told by a shape and a word, never by colour alone. The spoken sentence of the status bar is written in
 * full, for a screen reader gets no layout that would explain a row of figures.
 */

import type { TranslationBundle } from '@jupyterlab/translation';
import { formatAmount, formatClock, formatShort, overdueSeconds, servedNow } from './format';
import type { ICoded, IRental, State } from './tokens';

const SHAPES: Record<State, string> = {
  starting: '◔',
  running: '●',
  paused: '‖',
  reconnecting: '◌',
  ending: '◐',
  ended: '■'
};

export function shape(state: State): string {
  return SHAPES[state];
}

/** An exact amount with its unit. */
export function amount(trans: TranslationBundle, value: bigint, rental: IRental): string {
  return trans.__('%1 %2', formatAmount(value, rental.decimals), rental.symbol);
}

export function rate(trans: TranslationBundle, rental: IRental): string {
  return trans.__('%1 %2/h', formatAmount(rental.ratePerHour, rental.decimals), rental.symbol);
}

function shortAmount(trans: TranslationBundle, value: bigint, rental: IRental): string {
  return trans.__('%1 %2', formatShort(value, rental.decimals), rental.symbol);
}

function stateSeconds(rental: IRental, now: number): number {
  return Math.max(0, Math.floor((now - rental.stateBeganAt) / 1000));
}

/** What was paid in the end: the receipt's figure, or the meter's while there is no receipt yet. */
export function finalAmount(rental: IRental): bigint {
  return rental.receipt?.paid ?? rental.spent;
}

/** The parts of the status bar's text, after the shape and the title. */
export function barParts(trans: TranslationBundle, rental: IRental, now: number): string[] {
  const spent = shortAmount(trans, rental.spent, rental);
  switch (rental.state) {
    case 'starting':
      return [trans.__('starting'), trans.__('not charged yet')];
    case 'running': {
      const overdue = overdueSeconds(rental, now);
      const news = overdue === null ? [] : [trans.__('last report %1 s ago', String(overdue))];
      return [rate(trans, rental), formatClock(servedNow(rental, now)), spent, ...news];
    }
    case 'paused':
      return [trans.__('paused'), trans.__('not charged'), spent];
    case 'reconnecting':
      return [trans.__('reconnecting %1 s', String(stateSeconds(rental, now))), trans.__('still running'), spent];
    case 'ending':
      return [trans.__('stopping and settling'), spent];
    case 'ended':
      return [
        trans.__('ended'),
        shortReason(trans, rental.reason),
        rental.receipt
          ? trans.__('paid %1', shortAmount(trans, rental.receipt.paid, rental))
          : trans.__('%1, not settled yet', spent)
      ];
  }
}

/** The state in one sentence: spoken when it changes, and the first line of the details. */
export function stateSentence(trans: TranslationBundle, rental: IRental): string {
  switch (rental.state) {
    case 'starting':
      return trans.__('“%1” is starting. Nothing is charged yet.', rental.title);
    case 'running':
      return trans.__('“%1” is running.', rental.title);
    case 'paused':
      return trans.__('“%1” is paused and nothing is charged. %2', rental.title, reason(trans, rental.reason)).trim();
    case 'reconnecting':
      return trans.__(
        'The link to “%1” is down and is being restored. The kernel goes on running; nothing is lost.',
        rental.title
      );
    case 'ending':
      return trans.__('“%1” is being stopped and settled.', rental.title);
    case 'ended':
      return trans.__('“%1” has ended. %2', rental.title, reason(trans, rental.reason)).trim();
  }
}

/** What the status bar's button is called, in full sentences. */
export function buttonLabel(trans: TranslationBundle, rental: IRental, now: number): string {
  const spent = amount(trans, finalAmount(rental), rental);
  const cost =
    rental.state === 'ended'
      ? rental.receipt
        ? trans.__('%1 were paid.', spent)
        : trans.__('It cost %1 and is not settled yet.', spent)
      : trans.__(
          'It costs %1, has run for %2 and cost %3 so far.',
          rate(trans, rental),
          duration(trans, servedNow(rental, now)),
          spent
        );
  return trans.__('Rented kernel: %1 %2 Press for details.', stateSentence(trans, rental), cost);
}

/** The button's name where several rentals run and none of them is the current one. */
export function severalText(trans: TranslationBundle, count: number): string {
  return trans._n('%1 rental', '%1 rentals', count, String(count));
}

export function severalLabel(trans: TranslationBundle, count: number): string {
  return trans._n(
    '%1 rented kernel is running. Press for details.',
    '%1 rented kernels are running. Press for details.',
    count,
    String(count)
  );
}

/** A time in words, in its two largest units. */
export function duration(trans: TranslationBundle, ns: bigint): string {
  const total = Number(ns / 1_000_000_000n);
  const units: [number, (n: number) => string][] = [
    [Math.floor(total / 3600), n => trans._n('%1 hour', '%1 hours', n, String(n))],
    [Math.floor(total / 60) % 60, n => trans._n('%1 minute', '%1 minutes', n, String(n))],
    [total % 60, n => trans._n('%1 second', '%1 seconds', n, String(n))]
  ];
  const first = units.findIndex(([n]) => n > 0);
  if (first < 0) {
    return units[2][1](0);
  }
  return units
    .slice(first, first + 2)
    .filter(([n]) => n > 0)
    .map(([n, words]) => words(n))
    .join(' ');
}

/** Why a rental is over, in a few words for the status bar. The codes are those of `protocol/reason.py`. */
function shortReason(trans: TranslationBundle, why: ICoded | null): string {
  switch (why?.code) {
    case undefined:
    case 'stopped_by_user':
      return trans.__('stopped');
    case 'kernel_shutdown':
      return trans.__('kernel shut down');
    case 'provider_stopped':
      return trans.__('stopped by its owner');
    case 'arrears':
      return trans.__('not paid');
    case 'cap_reached':
      return trans.__('limit reached');
    case 'lease_over':
      return trans.__('time is over');
    case 'unreachable':
      return trans.__('provider unreachable');
    case 'start_failed':
      return trans.__('did not start');
    case 'provider_lost_kernel':
      return trans.__('provider restarted');
    default:
      return trans.__('stopped by a problem');
  }
}

/** Why a rental is paused or over, or why a request failed, in full. `fallback` is the server's English text. */
export function reason(trans: TranslationBundle, why: ICoded | null, fallback = ''): string {
  const fact = (name: string) => why?.facts[name] ?? '?';
  switch (why?.code) {
    case undefined:
      return fallback;
    case 'stopped_by_user':
      return trans.__('You stopped it.');
    case 'kernel_shutdown':
      return trans.__('The kernel was shut down.');
    case 'provider_stopped':
      return trans.__('The owner of the machine stopped it. You pay only for the time that was served.');
    case 'arrears':
      return trans.__('Payments did not arrive in time.');
    case 'lease_over':
      return trans.__('The agreed time is over. Start a new kernel to rent again.');
    case 'start_failed':
    case 'KernelStartFailed':
    case 'MachineTrouble':
      return trans.__('The kernel did not start on the provider’s machine. Choose another provider or try again.');
    case 'cap_reached':
      return trans.__('The limit for this rental is used up. Start a new kernel with a higher limit to go on.');
    case 'EmptyWallet':
      return trans.__(
        'Your wallet holds %1 %2 and the rental needs %3. Add money, or rent for less.',
        fact('balance'),
        fact('symbol'),
        fact('needed')
      );
    case 'VoucherRefused':
      return trans.__('The provider refused a payment. The kernel goes on when a valid one arrives.');
    case 'SettlementPending':
      return trans.__('It is not settled yet. It is written down, and is settled at the next start.');
    case 'ChainUnreachable':
      return trans.__('The payment network does not answer. Settlement is tried again by itself.');
    case 'unreachable':
    case 'ConnectionLost':
    case 'PeerUnreachable':
    case 'TransportError':
      return trans.__('The provider can no longer be reached. You pay only for the time that was served.');
    case 'provider_lost_kernel':
    case 'UnknownLease':
      return trans.__('The provider no longer knows the rental, probably because its machine restarted.');
    case 'LeaseEnded':
      return trans.__('Start a new kernel to rent again.');
    case 'RentalNotFound':
      return trans.__('This server no longer knows the rental.');
    case 'ServerUnreachable':
      return trans.__('Jupyter Server does not answer. Check that it runs, then try again.');
    default:
      return fallback || trans.__('The reason has the code %1.', why?.code ?? '');
  }
}

/** Which way the data goes, and how long there and back takes. */
export function link(trans: TranslationBundle, rental: IRental): string {
  if (rental.relayed === null) {
    return trans.__('none now');
  }
  const path = rental.relayed ? trans.__('through a relay') : trans.__('direct');
  return rental.rttMs === null ? path : trans.__('%1, %2 ms', path, String(Math.round(rental.rttMs)));
}

/** Whether bytes are spared now, and what share of all that would have gone over the link was so far. */
export function saving(trans: TranslationBundle, rental: IRental): string {
  const state = rental.saving ? trans.__('on') : trans.__('off');
  const whole = rental.bytesUp + rental.bytesDown + rental.spared;
  return rental.spared > 0
    ? trans.__('%1, %2 % spared', state, String(Math.floor((100 * rental.spared) / whole)))
    : state;
}
