/** Everything about one rental or several, as it is drawn in the popup: a pure component and the widget around it. */

import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { Message } from '@lumino/messaging';
import * as React from 'react';
import { formatBytes, formatClock, remainingNs, servedNow } from './format';
import { amount, duration, finalAmount, link, rate, saving, shape, stateSentence } from './messages';
import type { ICurrentRental, IRental, IRentals } from './tokens';
import { useNow } from './clock';

export interface IDetailsProps {
  rental: IRental;
  now: number;
  trans: TranslationBundle;
  stop: (rental: IRental) => void;
}

function short(address: string): string {
  return address.length > 16 ? `${address.slice(0, 8)}…${address.slice(-6)}` : address;
}

export function Details({ rental, now, trans, stop }: IDetailsProps): JSX.Element {
  const left = remainingNs(rental);
  const over = rental.state === 'ended';
  const rows: [string, string, string?][] = [
    [trans.__('Provider'), short(rental.provider), rental.provider],
    [trans.__('Rate'), rate(trans, rental)],
    [trans.__('Time'), formatClock(servedNow(rental, now))],
    [rental.receipt ? trans.__('Paid') : trans.__('Spent'), amount(trans, finalAmount(rental), rental)],
    [trans.__('At most'), amount(trans, rental.cap, rental)]
  ];
  if (!over && left !== null) {
    rows.push([trans.__('Lasts for'), duration(trans, left)]);
  }
  if (rental.receipt?.refunded !== null && rental.receipt?.refunded !== undefined) {
    rows.push([trans.__('Back in escrow'), amount(trans, rental.receipt.refunded, rental)]);
  }
  if (rental.receipt?.transaction) {
    rows.push([trans.__('Transaction'), short(rental.receipt.transaction), rental.receipt.transaction]);
  }
  if (!over) {
    rows.push([trans.__('Link'), link(trans, rental), rental.via ?? undefined]);
  }
  rows.push([
    trans.__('Data'),
    trans.__('%1 sent, %2 received', formatBytes(rental.bytesUp), formatBytes(rental.bytesDown))
  ]);
  rows.push([trans.__('Saving data'), saving(trans, rental)]);
  return (
    <section
      className="jp-Depin-details"
      aria-label={rental.title}
      data-depin-state={rental.state}
      data-depin-spent={rental.spent.toString()}
      data-depin-paid={rental.receipt?.paid.toString()}
    >
      <h3>
        <span aria-hidden="true">{shape(rental.state)} </span>
        {rental.title}
      </h3>
      <p>{stateSentence(trans, rental)}</p>
      <dl>
        {rows.map(([name, value, full]) => (
          <React.Fragment key={name}>
            <dt>{name}</dt>
            <dd title={full}>{value}</dd>
          </React.Fragment>
        ))}
      </dl>
      {!over && (
        <button
          className="jp-Dialog-button jp-mod-warn jp-mod-styled jp-Depin-stop"
          disabled={rental.state === 'ending'}
          onClick={() => stop(rental)}
        >
          {trans.__('Stop and settle')}
        </button>
      )}
    </section>
  );
}

function AllDetails(props: Omit<DetailsWidget.IOptions, 'current'> & { current: ICurrentRental }): JSX.Element {
  const now = useNow(props.rentals);
  return (
    <UseSignal signal={props.current.changed}>
      {() => (
        <>
          {props.current.shown.map(rental => (
            <Details key={rental.id} rental={rental} now={now} trans={props.trans} stop={props.stop} />
          ))}
        </>
      )}
    </UseSignal>
  );
}

/** The details as a widget that keeps itself up to date. It takes the focus, so that Escape and Tab work at once. */
export class DetailsWidget extends ReactWidget {
  constructor(private readonly options: DetailsWidget.IOptions) {
    super();
    this.addClass('jp-Depin-popup');
    this.node.tabIndex = -1;
    this.node.setAttribute('role', 'dialog');
    this.node.setAttribute('aria-label', options.trans.__('Rented kernel'));
  }

  protected override render(): JSX.Element {
    return <AllDetails {...this.options} />;
  }

  protected override onAfterAttach(msg: Message): void {
    super.onAfterAttach(msg);
    this.node.focus();
  }
}

export namespace DetailsWidget {
  export interface IOptions {
    current: ICurrentRental;
    rentals: IRentals;
    trans: TranslationBundle;
    stop: (rental: IRental) => void;
  }
}
