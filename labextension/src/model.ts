/**
 * What is known of the rentals: keeps the last report of each and tells when one came. No DOM, no requests of its own.
 *
 * A reply to a request may be older than an event that overtook it; such a reply never overwrites the event.
 */

import { type ISignal, Signal } from '@lumino/signaling';
import type { IReceipt, IRental, IRentals, IWireRental } from './tokens';

/** A live rental that says nothing for so long is asked about. */
const QUIET_MS = 15_000;

export interface IRequests {
  list(): Promise<IWireRental[]>;
  settle(id: string): Promise<IWireRental>;
}

export class Rentals implements IRentals {
  constructor(
    private readonly requests: IRequests,
    readonly now: () => number = () => performance.now()
  ) {}

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  live(): IRental[] {
    return [...this._rentals.values()].filter(rental => rental.state !== 'ended');
  }

  ofKernel(kernelId: string): IRental | null {
    const own = [...this._rentals.values()].filter(rental => rental.kernelId === kernelId);
    return own.find(rental => rental.state !== 'ended') ?? own[own.length - 1] ?? null;
  }

  /** Take a report in. Called with every event, and with every reply. */
  report(wire: IWireRental): IRental {
    const rental = parse(wire, this._rentals.get(wire.id), this.now());
    this._rentals.set(rental.id, rental);
    this._reports.set(rental.id, (this._reports.get(rental.id) ?? 0) + 1);
    this._changed.emit();
    return rental;
  }

  /** Ask for everything. Called when the page loads, comes back, or has heard nothing for a while. */
  async refresh(): Promise<void> {
    const before = new Map(this._reports);
    const listed = await this.requests.list();
    const untouched = (id: string) => this._reports.get(id) === before.get(id);
    for (const wire of listed.filter(wire => untouched(wire.id))) {
      this.report(wire);
    }
    // What the server no longer knows is gone, except what has ended: its receipt stays readable.
    const known = new Set(listed.map(wire => wire.id));
    for (const rental of this.live().filter(rental => !known.has(rental.id) && untouched(rental.id))) {
      this._rentals.delete(rental.id);
      this._changed.emit();
    }
  }

  async settle(id: string): Promise<IRental> {
    return this.report(await this.requests.settle(id));
  }

  /**
   * Whether to ask: a live rental is silent, or none is known. Without one, silence proves nothing: the event stream
   * does not tell when it was away.
   */
  get isQuiet(): boolean {
    const live = this.live();
    return live.length === 0 || live.some(rental => this.now() - rental.reportedAt > QUIET_MS);
  }

  private readonly _rentals = new Map<string, IRental>();
  private readonly _reports = new Map<string, number>();
  private readonly _changed = new Signal<this, void>(this);
}

function parse(wire: IWireRental, known: IRental | undefined, now: number): IRental {
  const sameState = known?.state === wire.state ? known.stateBeganAt : now;
  return {
    id: wire.id,
    kernelId: wire.kernel_id,
    state: wire.state,
    reason: wire.reason,
    provider: wire.provider,
    node: wire.node,
    title: wire.title,
    ratePerHour: BigInt(wire.rate_per_hour),
    symbol: wire.symbol,
    decimals: wire.decimals,
    servedNs: BigInt(wire.served_ns),
    spent: BigInt(wire.spent),
    cap: BigInt(wire.cap),
    bytesUp: wire.bytes_up,
    bytesDown: wire.bytes_down,
    spared: wire.spared,
    saving: wire.saving,
    rttMs: wire.rtt_ms,
    relayed: wire.relayed,
    via: wire.via,
    receipt: parseReceipt(wire),
    reportedAt: now,
    stateBeganAt: wire.state_age_s === null ? sameState : now - wire.state_age_s * 1000
  };
}

function parseReceipt(wire: IWireRental): IReceipt | null {
  const receipt = wire.receipt;
  if (!receipt || !receipt.paid) {
    return null;
  }
  return {
    paid: BigInt(receipt.paid),
    refunded: receipt.refunded ? BigInt(receipt.refunded) : null,
    transaction: receipt.transaction ?? null
  };
}
