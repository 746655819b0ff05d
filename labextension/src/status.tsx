/** The cost meter in the status bar; in Notebook 7, which has none, in the menu area. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { Dialog, ICommandPalette } from '@jupyterlab/apputils';
import { IStatusBar, type Popup, showPopup } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator, type TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';
import * as React from 'react';
import { useNow } from './clock';
import { DetailsWidget } from './details';
import { barParts, buttonLabel, severalLabel, severalText, shape, stateSentence } from './messages';
import { CommandIDs, ICurrentRental, type IRental, IRentals, TRANSLATION_DOMAIN } from './tokens';

interface IMeterProps {
  shown: readonly IRental[];
  now: number;
  trans: TranslationBundle;
  press: () => void;
}

/** The meter's button, drawn from reports only. The `data-depin-…` attributes carry the exact figures, for tests. */
function Meter({ shown, now, trans, press }: IMeterProps): JSX.Element | null {
  if (shown.length === 0) {
    return null;
  }
  if (shown.length > 1) {
    return (
      <button
        className="jp-Depin-meter"
        aria-label={severalLabel(trans, shown.length)}
        aria-haspopup="dialog"
        data-depin-state="several"
        onClick={press}
      >
        <span className="jp-Depin-shape" aria-hidden="true">
          {shape('running')}
        </span>
        {severalText(trans, shown.length)}
      </button>
    );
  }
  const rental = shown[0];
  return (
    <>
      <button
        className="jp-Depin-meter"
        aria-label={buttonLabel(trans, rental, now)}
        aria-haspopup="dialog"
        title={stateSentence(trans, rental)}
        data-depin-rental={rental.id}
        data-depin-state={rental.state}
        data-depin-spent={rental.spent.toString()}
        data-depin-served-ns={rental.servedNs.toString()}
        data-depin-paid={rental.receipt?.paid.toString()}
        onClick={press}
      >
        <span className="jp-Depin-shape" aria-hidden="true">
          {shape(rental.state)}
        </span>
        {[rental.title, ...barParts(trans, rental, now)].join(' · ')}
      </button>
      {/* Spoken when the state changes and at no other time: a voice that counts seconds helps nobody. */}
      <span className="jp-Depin-spoken" role="status">
        {stateSentence(trans, rental)}
      </span>
    </>
  );
}

function LiveMeter(props: MeterWidget.IOptions): JSX.Element {
  const now = useNow(props.rentals);
  return (
    <UseSignal signal={props.current.changed}>
      {() => (
        <Meter
          shown={props.current.shown}
          now={Math.max(now, props.rentals.now())}
          trans={props.trans}
          press={props.press}
        />
      )}
    </UseSignal>
  );
}

class MeterWidget extends ReactWidget {
  constructor(private readonly options: MeterWidget.IOptions) {
    super();
    this.id = 'jupyter-depin-meter';
    this.addClass('jp-Depin-item');
  }

  protected override render(): JSX.Element {
    return <LiveMeter {...this.options} />;
  }

  focusButton(): void {
    this.node.querySelector('button')?.focus();
  }
}

namespace MeterWidget {
  export interface IOptions {
    current: ICurrentRental;
    rentals: IRentals;
    trans: TranslationBundle;
    press: () => void;
  }
}

export const status: JupyterFrontEndPlugin<void> = {
  id: '@jupyter-depin/lab:status',
  description: 'Shows what the current rental costs.',
  autoStart: true,
  requires: [IRentals, ICurrentRental],
  optional: [IStatusBar, ITranslator, ICommandPalette],
  activate: (
    app: JupyterFrontEnd,
    rentals: IRentals,
    current: ICurrentRental,
    statusBar: IStatusBar | null,
    translator: ITranslator | null,
    palette: ICommandPalette | null
  ): void => {
    const trans = (translator ?? nullTranslator).load(TRANSLATION_DOMAIN);
    let popup: Popup | null = null;
    let dialog: Dialog<unknown> | null = null;
    const details = () =>
      new DetailsWidget({
        current,
        rentals,
        trans,
        stop: rental => {
          popup?.dispose();
          dialog?.reject();
          void app.commands.execute(CommandIDs.stopAndSettle, { rental: rental.id });
        }
      });
    const showBeside = () => {
      if (popup && !popup.isDisposed) {
        popup.dispose();
        return;
      }
      const shown = showPopup({ body: details(), anchor: meter, align: 'left', hasDynamicSize: true });
      shown.disposed.connect(() => {
        // Back to where the user came from, unless they have already gone elsewhere.
        if (shown.node.contains(document.activeElement)) {
          meter.focusButton();
        }
      });
      popup = shown;
    };
    const showInDialog = () => {
      dialog = new Dialog({ body: details(), buttons: [Dialog.okButton({ label: trans.__('Close') })] });
      void dialog.launch();
    };
    // The host's popup opens upwards only; from a menu bar that would be outside the page.
    const show = statusBar ? showBeside : showInDialog;
    const meter = new MeterWidget({ current, rentals, trans, press: show });

    app.commands.addCommand(CommandIDs.show, {
      label: trans.__('Show the Rented Kernel'),
      isEnabled: () => current.shown.length > 0,
      execute: show
    });
    palette?.addItem({ command: CommandIDs.show, category: trans.__('Rented Kernels') });

    if (statusBar) {
      statusBar.registerStatusItem(status.id, {
        item: meter,
        align: 'left',
        // Left: notifications lie over the right end and swallow clicks.
        rank: 100,
        isActive: () => current.shown.length > 0,
        activeStateChanged: current.changed
      });
    } else {
      app.shell.add(meter, 'menu', { rank: 2000 });
    }
  }
};
