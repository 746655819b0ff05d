/** What plugins give each other, the commands' names, and a rental as it crosses the wire and as it is used here. */

import { Token } from '@lumino/coreutils';
import type { ISignal } from '@lumino/signaling';

export const TRANSLATION_DOMAIN = 'jupyter_depin';

export const CommandIDs = {
  show: 'depin:show-rental',
  stopAndSettle: 'depin:stop-and-settle'
} as const;

export type State = 'starting' | 'running' | 'paused' | 'reconnecting' | 'ending' | 'ended';

/** A stable code with its facts; `messages.ts` makes the sentence. */
export interface ICoded {
  readonly code: string;
  readonly facts: Readonly<Record<string, string>>;
}

/** A rental as the server sends it. Amounts in base units, as decimal strings. */
export interface IWireRental {
  readonly id: string;
  readonly kernel_id: string;
  readonly state: State;
  readonly state_age_s: number | null;
  readonly reason: ICoded | null;
  readonly provider: string;
  readonly node: string;
  readonly title: string;
  readonly rate_per_hour: string;
  readonly symbol: string;
  readonly decimals: number;
  readonly served_ns: string;
  readonly spent: string;
  readonly cap: string;
  readonly bytes_up: number;
  readonly bytes_down: number;
  readonly spared: number;
  readonly saving: boolean;
  readonly rtt_ms: number | null;
  readonly relayed: boolean | null;
  readonly via: string | null;
  readonly receipt: Readonly<Record<string, string | null>> | null;
}

/** What settlement brought, in base units. */
export interface IReceipt {
  readonly paid: bigint;
  readonly refunded: bigint | null;
  readonly transaction: string | null;
}

/** A rental as its meter last reported it. Money is BigInt, never `number`. */
export interface IRental {
  readonly id: string;
  readonly kernelId: string;
  readonly state: State;
  readonly reason: ICoded | null;
  readonly provider: string;
  readonly node: string;
  readonly title: string;
  readonly ratePerHour: bigint;
  readonly symbol: string;
  readonly decimals: number;
  readonly servedNs: bigint;
  readonly spent: bigint;
  readonly cap: bigint;
  readonly bytesUp: number;
  readonly bytesDown: number;
  /** Bytes that thrift kept off the link so far. */
  readonly spared: number;
  /** Whether it does so now. */
  readonly saving: boolean;
  readonly rttMs: number | null;
  readonly relayed: boolean | null;
  readonly via: string | null;
  readonly receipt: IReceipt | null;
  /** When this report came, in ms of the page's clock. */
  readonly reportedAt: number;
  /** When the state began, in ms of the page's clock. */
  readonly stateBeganAt: number;
}

/** The rentals of this server's kernels. */
export interface IRentals {
  /** Emitted after every report. */
  readonly changed: ISignal<IRentals, void>;
  /** Those that are not over, oldest first. */
  live(): IRental[];
  /** The rental that a kernel runs on; a live one before an ended one. */
  ofKernel(kernelId: string): IRental | null;
  /** Stop the rental and settle it. Rejects with `ApiError`. */
  settle(id: string): Promise<IRental>;
  /** The page's clock, in ms: what `reportedAt` is measured on. */
  now(): number;
}

export const IRentals = new Token<IRentals>(
  '@jupyter-depin/lab:IRentals',
  'The rentals of this server’s kernels.'
);

/** What the status bar is about: the rental of the current notebook or console. */
export interface ICurrentRental {
  readonly changed: ISignal<ICurrentRental, void>;
  /** One rental; several when none of them is the current one; none. */
  readonly shown: readonly IRental[];
}

export const ICurrentRental = new Token<ICurrentRental>(
  '@jupyter-depin/lab:ICurrentRental',
  'The rental of the current notebook or console.'
);
